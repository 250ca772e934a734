-- Three roles for a log in Postgres, each with no more rights than it needs:
--
--   plc_owner     owns the tables, and brings them up to date: for `plc-replica migrate`.
--   plc_follower  follows: reads everything, writes operations and what is kept beside them. It can neither change nor
--                 empty a table. For the commands that write: `serve`, `import`, `repair`, `renumber`, `audit`.
--   plc_reader    reads. For `--read-database`, for the commands that only read (`resolve`, `history`, `refused`,
--                 `export`, `snapshot`, `fsck`), and for people.
--
-- As a superuser:
--
--   psql "$DATABASE_URL" --set ON_ERROR_STOP=1 --file ops/roles.sql
--
-- It can be run again at any time, and should be run before the tables are made and once more afterwards: which migrations
-- were applied may be written by the follower until then. Nobody can log in by a password before one is set:
-- \password plc_reader. On a standby everything is as on its primary. Where the tables are in another schema than
-- `public`, say --set schema=NAME, and name it in the URLs too (?options=-csearch_path%3DNAME).

\if :{?schema}
\else
    \set schema public
\endif

BEGIN;

SELECT format('CREATE ROLE %I LOGIN', name)
FROM unnest(ARRAY['plc_owner', 'plc_follower', 'plc_reader']) AS roles (name)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec

SELECT format('GRANT CONNECT ON DATABASE %I TO plc_owner, plc_follower, plc_reader', current_database())
\gexec

-- The owner creates tables, of which what was there before becomes its own; the others find them.
GRANT USAGE, CREATE ON SCHEMA :"schema" TO plc_owner;
GRANT USAGE ON SCHEMA :"schema" TO plc_follower, plc_reader;

SELECT format('ALTER %s %I.%I OWNER TO plc_owner', CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, nspname, relname)
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = :'schema' AND relkind IN ('r', 'v') AND NOT EXISTS (
    SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')
UNION ALL
SELECT format('ALTER FUNCTION %s OWNER TO plc_owner', pg_proc.oid::regprocedure)
FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
WHERE nspname = :'schema' AND proname LIKE 'plc\_%'
\gexec

-- What there is, and what the owner will make.
GRANT SELECT ON ALL TABLES IN SCHEMA :"schema" TO plc_follower, plc_reader;
GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA :"schema" TO plc_follower;
ALTER DEFAULT PRIVILEGES FOR ROLE plc_owner IN SCHEMA :"schema" GRANT SELECT ON TABLES TO plc_follower, plc_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE plc_owner IN SCHEMA :"schema" GRANT INSERT, UPDATE, DELETE ON TABLES TO plc_follower;

-- Which migrations were applied is for the owner to write.
SELECT format('REVOKE INSERT, UPDATE, DELETE ON %I._sqlx_migrations FROM plc_follower', :'schema')
WHERE to_regclass(format('%I._sqlx_migrations', :'schema')) IS NOT NULL
\gexec

COMMIT;
