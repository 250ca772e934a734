-- The log, what was refused, and where the follower stands.
--
-- Times are milliseconds since 1970 (int8): the directory's own resolution, compared without
-- time zones. DIDs are the 15 bytes that their 24 characters encode. Text that strangers wrote is
-- bytea (UTF-8), since a Postgres text cannot hold U+0000 and their strings may. The functions
-- and views of 0002_readable.sql print all of it for people.

-- Every accepted operation. The CID is not stored: it is the SHA-256 of what `operation` unpacks to.
--
-- The order of the columns leaves no padding between the fixed ones, and seven of them keep the
-- row header, null bitmap included, at 24 bytes.
CREATE TABLE operations (
    created_at   int8  NOT NULL,  -- when the directory accepted it
    sequence     int8,            -- the directory's number; null when only a legacy dump had it
    nullified_by int8,            -- created_at of the operation of this DID that nullified it
    received_at  int8  NOT NULL,  -- when the batch that brought it arrived here
    signer       int2  NOT NULL,  -- index of the rotation key that signed it
    did          bytea NOT NULL,
    operation    bytea NOT NULL,  -- the signed bytes, packed; the first byte names the codec
    -- A chain is ordered by created_at, and its newest row that is not nullified is the head.
    -- Serves lookups of one identity, the chains of a batch, and sweeps in the order of DIDs.
    PRIMARY KEY (did, created_at)
) WITH (
    -- Rows hardly ever change (one in a hundred is nullified later), so pages are filled.
    fillfactor = 100,
    -- Vacuum has two things to do here: mark pages all-visible and freeze them, once. By default it
    -- would wait for a fifth of the log, and then read that much at one go.
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_vacuum_insert_threshold = 1000000,
    autovacuum_freeze_min_age = 0
);

-- Already packed: trying to compress it again costs time and gains nothing.
ALTER TABLE operations ALTER COLUMN operation SET STORAGE EXTERNAL;

-- Serves the export by number and the search for numbers that are taken. Numbers ascend, so
-- pages are filled and left, but for some room: a row that is nullified gets a new entry beside its
-- old one, about five a page, and on a full page each would split it.
CREATE UNIQUE INDEX operations_sequence ON operations (sequence) WITH (fillfactor = 95)
    WHERE sequence IS NOT NULL;

-- Serves the export by time, which asks with `created_at >> 16` beside `created_at` and sorts within
-- these 66 seconds. Equal keys are stored once, with six bytes for each row: a third of what an
-- index on created_at itself takes. Nearly ascending: late arrivals split a page here and there.
CREATE INDEX operations_created_at ON operations ((created_at >> 16)) WITH (fillfactor = 95);

-- Serves the index of claims, which has to begin with these: rarely any, and no entry of those that
-- have a number.
CREATE INDEX operations_unnumbered ON operations (did, created_at) WHERE sequence IS NULL;

-- Strings that occur in many operations, which name them by number. Written in the
-- transaction of the first operation that uses it, never changed.
CREATE TABLE interned (
    id   int4  PRIMARY KEY,
    text bytea NOT NULL
);

-- The upstream that is followed: one row. Each batch changes it in the transaction of its
-- operations, which is what makes the two agree after any crash, and what keeps a second follower out.
CREATE TABLE sources (
    id           int2 PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    upstream     text NOT NULL,
    cursor       int8 NOT NULL DEFAULT 0,  -- last committed sequence number
    epoch        int8 NOT NULL DEFAULT 0,  -- raised by each follower that takes over
    lease_until  timestamptz,              -- nobody takes over before; null: released
    caught_up_at int8,                     -- when the log was caught up for the first time
    operations   int8 NOT NULL DEFAULT 0,  -- rows of `operations`, and how many of them are a
    identities   int8 NOT NULL DEFAULT 0,  -- genesis: counting them would read the whole log
    -- The claims of operations up to this number are in `claims`, below zero not yet those of all
    -- operations without a number; null: there is no such index.
    claimed      int8,
    claims       int8 NOT NULL DEFAULT 0   -- rows of `claims`
) WITH (
    -- Room for new versions of the row beside the old one, so that no index entry is written.
    fillfactor = 10,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0
);

-- Serves the reverse look-up, where that is asked for: which identities ever claimed a handle, a host
-- or a key. A row is 32 bits of the value's SHA-256 and, below them, the first 32 of the DID: it
-- names a candidate, and what was claimed from when until when is read from the candidate's
-- operations. So a row is written once, never changed, and does no harm when it is too many. Both
-- halves in one number make it the smallest row that there is, 36 bytes and 20 in the index.
CREATE TABLE claims (
    pair int8 PRIMARY KEY
);

-- What the upstream sent and we refused, as it was received.
CREATE TABLE refusals (
    id          int8  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    did         bytea NOT NULL,  -- as stated, whatever it looks like
    sequence    int8,            -- as stated
    cid         bytea,           -- digest computed from the operation, when it could be
    kind        text  NOT NULL,
    detail      bytea NOT NULL,  -- for a person; quotes what came
    awaits      bytea,           -- digest of the operation after which it is judged again
    line        bytea NOT NULL,
    line_digest bytea NOT NULL UNIQUE,  -- SHA-256 of `line`: the same bytes are kept once
    received_at int8  NOT NULL,
    accepted_at int8             -- when it was judged again and accepted after all
);

-- Serves "what was refused of this identity". A hash index, because a stated DID can be longer
-- than a B-tree takes.
CREATE INDEX refusals_did ON refusals USING hash (did);

-- Serves the search for what waits for an operation that was just accepted.
CREATE INDEX refusals_awaits ON refusals (awaits) WHERE awaits IS NOT NULL AND accepted_at IS NULL;

-- Differences between this log and what somebody else says. Nothing in `operations` follows
-- from them.
CREATE TABLE divergences (
    id         int8  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source     bytea NOT NULL,  -- who says otherwise
    did        bytea NOT NULL,  -- as text
    kind       text  NOT NULL,
    subject    bytea NOT NULL,  -- what it is about, usually a CID
    ours       bytea,           -- our entries, JSON
    theirs     bytea,           -- theirs, as received
    first_seen int8  NOT NULL,
    last_seen  int8  NOT NULL,
    closed_at  int8,            -- when it was found to be gone
    identity   bytea NOT NULL UNIQUE  -- SHA-256 of source, did, kind and subject: one record for each
);

-- Serves "what is known to differ about this identity".
CREATE INDEX divergences_did ON divergences USING hash (did);

-- Serves the list of what is open, and its number.
CREATE INDEX divergences_open ON divergences (id) WHERE closed_at IS NULL;
