"""Chat exports of every provider into the archive."""
