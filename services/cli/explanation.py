"""The explanation of a search as a tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.tree import Tree

from pgcorpus.services.cli.output import visible

if TYPE_CHECKING:
    from pgcorpus.db.search.page import Explanation, Leg, SearchPage


MAX_VALUE_CHARACTERS = 100


def tree(page: SearchPage, explanation: Explanation) -> Tree:
    """Build the tree of legs, contributions to hits, plan, and statement with its parameters."""
    root = Tree(
        f"[bold]{escape(visible(page.question))}[/] ({page.corpus}, {page.mode}, {page.fusion})"
    )
    legs = root.add("legs")
    for leg in page.legs:
        legs.add(escape(describe_leg(leg)))
    hits = root.add("hits")
    for place, hit in enumerate(page.hits, start=1):
        shown = hits.add(f"{place}. [bold]{escape(visible(hit.title))}[/] {hit.score:.4f}")
        for name, gain in hit.contributions.items():
            rank = f"#{hit.ranks[name]}" if name in hit.ranks else "not among its best"
            shown.add(f"{name} gave {gain:.4f} (score {hit.scores[name]:.4f}, {rank})")
    add_explanation(root, explanation)
    return root


def add_explanation(root: Tree, explanation: Explanation) -> None:
    """Add the plan, the settings, the parameters and the statement to a tree."""
    plan = root.add(_describe_times(explanation.plan))
    _add(plan, explanation.plan["Plan"])
    settings = root.add("settings")
    for name, value in explanation.settings.items():
        settings.add(f"{name} = {value}")
    parameters = root.add("parameters")
    for name, value in explanation.parameters.items():
        parameters.add(escape(visible(f"{name} = {value!r}"[:MAX_VALUE_CHARACTERS])))
    root.add("statement").add(escape(explanation.statement))


def _describe_times(plan: Mapping[str, Any]) -> str:
    """Describe how long a statement took, or say that it was not run."""
    if "Execution Time" not in plan:
        return "plan: not run, so rows are estimates"
    return f"plan: {plan['Planning Time']:.1f} ms to plan, {plan['Execution Time']:.1f} ms to run"


def _describe_cost(node: Mapping[str, Any]) -> str:
    """Describe the rows and the time of a node, or what the planner thinks of it."""
    if "Actual Rows" not in node:
        return f"{node['Plan Rows']:,} rows, cost {node['Total Cost']:,.0f}"
    rows = node["Actual Rows"] * node["Actual Loops"]
    took_ms = node["Actual Total Time"] * node["Actual Loops"]
    return f"{rows:.0f} rows, {took_ms:.2f} ms"


def describe_leg(leg: Leg) -> str:
    """Describe the part of a leg, in a line."""
    took = "" if leg.duration_ms is None else f" in {leg.duration_ms:.1f} ms"
    reason = "" if leg.reason is None else f" ({leg.reason})"
    return visible(f"{leg.name}: {leg.status}, {leg.candidates} candidates{took}{reason}")


def _add(parent: Tree, node: Mapping[str, Any]) -> None:
    """Add a node of a plan and those under it."""
    of = node.get("Index Name") or node.get("Relation Name") or node.get("CTE Name")
    part = node.get("Subplan Name")
    words = [
        f"[dim]{escape(part)}:[/]" if part else "",
        f"[bold]{node['Node Type']}[/]",
        f"on [cyan]{escape(of)}[/]" if of else "",
        _describe_cost(node),
    ]
    shown = parent.add(" ".join(word for word in words if word))
    for key in ("Index Cond", "Recheck Cond", "Filter"):
        if key in node:
            shown.add(f"[dim]{key}: {escape(visible(str(node[key])[:MAX_VALUE_CHARACTERS]))}[/]")
    for below in node.get("Plans", ()):
        _add(shown, below)
