-- What an administrator does once on a new server: the owner, the database and its extensions.
--
--     PGCORPUS_OWNER_PASSWORD=... psql --username postgres --file prepare.sql
--
-- The owner is no superuser. Its password comes from the environment, and is not logged.
\set ON_ERROR_STOP on
\getenv owner_password PGCORPUS_OWNER_PASSWORD
\if :{?owner_password}
\else
DO $$ BEGIN RAISE 'PGCORPUS_OWNER_PASSWORD is not set: nothing was done'; END $$;
\endif
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET password_encryption = 'scram-sha-256';
CREATE ROLE pgcorpus_owner LOGIN CREATEROLE NOSUPERUSER PASSWORD :'owner_password';
CREATE DATABASE pgcorpus OWNER pgcorpus_owner TEMPLATE template0 ENCODING 'UTF8'
    LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8';
REVOKE CONNECT, TEMPORARY ON DATABASE pgcorpus FROM PUBLIC;
\connect pgcorpus
CREATE EXTENSION vector;
CREATE EXTENSION pg_trgm;
CREATE EXTENSION pgcrypto;
