-- The log, what was refused, and where the follower stands.
--
-- Times are milliseconds since 1970. DIDs are the 15 bytes that their 24 characters encode, CIDs
-- their SHA-256 digests. Sequence numbers are the rows' own numbers, so that the log lies in the
-- order in which it is exported and needs no index for that.

-- Every accepted operation. The CID is not stored: it is the SHA-256 of what `operation` unpacks to.
CREATE TABLE operations (
    -- The directory's number. Operations that only a legacy dump had, which have none, stand
    -- below zero in the order in which they came, each at a place that no other identity is given later.
    sequence     INTEGER PRIMARY KEY,
    did          BLOB    NOT NULL,
    created_at   INTEGER NOT NULL,  -- when the directory accepted it
    signer       INTEGER NOT NULL,  -- index of the rotation key that signed it; 0 and 1 take no space
    nullified_by INTEGER,           -- created_at of the operation of this DID that nullified it
    received_at  INTEGER NOT NULL,  -- when the batch that brought it arrived here
    operation    BLOB    NOT NULL   -- the signed bytes, packed; the first byte names the codec
) STRICT;

-- Serves the export by time. Nearly ascending, so its pages are filled and left.
CREATE INDEX operations_created_at ON operations (created_at);

-- The operations of an identity. DIDs come in no order, so that each page of this index is written
-- again and again: it has only the first four bytes of the DID (fewer than four identities
-- in a hundred share them with another when there are 150 million), and the whole DID is compared in the row.
-- Operations above `sources.indexed` come to it later, many at a time.
CREATE TABLE chains (
    prefix   INTEGER NOT NULL,  -- as a number, less 2^31: small in a row, and in the order of DIDs
    sequence INTEGER NOT NULL,
    PRIMARY KEY (prefix, sequence)
) STRICT, WITHOUT ROWID;

-- Strings that occur in many operations, which name them by number. Written in the
-- transaction of the first operation that uses it, never changed.
CREATE TABLE interned (
    id   INTEGER PRIMARY KEY,
    text TEXT NOT NULL
) STRICT;

-- The upstream that is followed: one row. Each batch changes it in the transaction of its
-- operations, which is what makes the two agree after any crash, and what keeps a second follower out.
CREATE TABLE sources (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    upstream     TEXT    NOT NULL,
    cursor       INTEGER NOT NULL DEFAULT 0,  -- last committed sequence number
    -- What the upstream stated under that number. It need not be what we hold under it: the line may
    -- have been refused, or the number may have been given to something else after the upstream
    -- went back. By it the upstream is asked whether it still has the log that was read.
    cursor_cid   TEXT,
    epoch        INTEGER NOT NULL DEFAULT 0,  -- raised by each follower that takes over
    caught_up_at INTEGER,                     -- when the log was caught up for the first time
    operations   INTEGER NOT NULL DEFAULT 0,  -- rows of `operations`, and how many of them are a
    identities   INTEGER NOT NULL DEFAULT 0,  -- genesis: counting them would read the whole log
    -- Operations up to this one are in `chains`. Those above it are, when they came out of order;
    -- the others are known to whoever has read the end of the log.
    indexed      INTEGER NOT NULL DEFAULT -9223372036854775808,
    -- Commits that took a number away from an identity, or the end of the log: who has read that end before reads it
    -- anew.
    renumbered   INTEGER NOT NULL DEFAULT 0,
    commits      INTEGER NOT NULL DEFAULT 0,  -- how many there were
    committed_in INTEGER NOT NULL DEFAULT 0,  -- the epoch of the last one
    -- What the follower knows that the log does not say (how fresh it is, how it stands with its upstreams), for the
    -- processes that only read: JSON, written with commits and whenever the lease is renewed.
    word         TEXT,
    -- Where the next operation without a number is put: enough room below zero, and four bytes each.
    unnumbered   INTEGER NOT NULL DEFAULT -2147483648,
    -- The log is read again behind the follower: once an hour after it was received, and then in rounds.
    second_reading INTEGER NOT NULL DEFAULT 0,  -- everything up to this number was read twice
    round          INTEGER NOT NULL DEFAULT 0,  -- in the round under way everything up to this number was read
    round_began_at INTEGER,                     -- null: before the first round
    rounds         INTEGER NOT NULL DEFAULT 0,  -- how many were completed
    -- 1 while the numbers in the log are an earlier upstream's, until the log has been read to its end.
    renumbering    INTEGER NOT NULL DEFAULT 0,
    -- An upstream without our numbers, or without any, is read by time. The one that was last, up to which `createdAt`
    -- all of it was read, and was read twice; null: none yet.
    by_time        TEXT,
    by_time_read   INTEGER NOT NULL DEFAULT 0,
    by_time_second INTEGER NOT NULL DEFAULT 0,
    refused_bytes  INTEGER NOT NULL DEFAULT 0,  -- the sum of `bytes` in `refusals`
    forgotten      INTEGER NOT NULL DEFAULT 0,  -- how many of its rows were deleted for being too many
    forgotten_up_to INTEGER,                    -- the highest number that one of those stated
    divergence_bytes      INTEGER NOT NULL DEFAULT 0,  -- the same two of `divergences`
    forgotten_divergences INTEGER NOT NULL DEFAULT 0,
    -- The claims of operations up to this row are in `claims`; null: there is no such index.
    claimed      INTEGER,
    claims       INTEGER NOT NULL DEFAULT 0   -- rows of `claims`
) STRICT;

-- The last commits, for processes that did not make them and have clients of the stream: which operations are new for
-- these. A row is written again when as many have come as are kept.
CREATE TABLE commits (
    slot   INTEGER PRIMARY KEY,  -- the number, modulo 4096
    number INTEGER NOT NULL,     -- the first commit is number 1
    epoch  INTEGER NOT NULL,     -- of the follower that made it: a number that a crash took back is given out again
    told   TEXT                  -- the operations by their numbers, as in `1-3,7`; null: too scattered to be listed
) STRICT;

-- Numbers under which the upstream states another operation, or another time, than it has stated before, which was taken
-- over. They are read once more, and are not here any more then.
CREATE TABLE unsettled (
    sequence INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL,  -- when that was stated
    times    INTEGER NOT NULL   -- whether it was another time
) STRICT;

-- The SHA-256 of the lines of each volume of an archive that was imported whole, none of them refused: it is not read
-- again.
CREATE TABLE imported (
    content BLOB PRIMARY KEY CHECK (length(content) = 32)
) STRICT, WITHOUT ROWID;

-- Serves the reverse look-up, where that is asked for: which identities ever claimed a handle, a host
-- or a key. A row is 32 bits of the value's SHA-256 and, below them, the first 32 of the DID: it
-- names a candidate, and what was claimed from when until when is read from the candidate's
-- operations. So a row is written once, never changed, and does no harm when it is too many.
CREATE TABLE claims (
    pair INTEGER PRIMARY KEY
) STRICT;

-- What was sent and we refused, as it was received, within a bound.
CREATE TABLE refusals (
    -- Never given to another record, also when the newest was deleted: who has read up to a record reads on after it.
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    did         TEXT    NOT NULL,  -- as stated, whatever it looks like
    sequence    INTEGER,           -- as stated
    cid         BLOB,              -- digest computed from the operation, when it could be
    kind        TEXT    NOT NULL,
    detail      TEXT    NOT NULL,  -- for a person; quotes what came
    source      TEXT    NOT NULL,  -- who stated it first
    stated_at   INTEGER,           -- the time that the line states
    received_at INTEGER NOT NULL,
    accepted_at INTEGER,           -- when it was found to be accepted after all; null: it stands
    asked       INTEGER NOT NULL DEFAULT 0,  -- how often the upstream was asked about it since
    ask_at      INTEGER,           -- when it is to be asked next; null: nothing is expected of that
    key         BLOB    NOT NULL UNIQUE,     -- a SHA-256: the same is kept once
    line        BLOB    NOT NULL,
    -- What it counts with where bytes are bounded, about what it takes on disk: what strangers wrote, of which the DID
    -- is in an index too, and 300 for everything else of a row and its index entries.
    bytes       INTEGER NOT NULL GENERATED ALWAYS AS (
        length(line) + length(CAST(detail AS BLOB)) + 2 * length(CAST(did AS BLOB)) + 300) VIRTUAL
) STRICT;

-- Serves "what was refused of this identity".
CREATE INDEX refusals_did ON refusals (did);

-- Serves the choice of what is deleted when there are too many: the oldest of a source and kind, and of each kind of a
-- source.
CREATE INDEX refusals_kind ON refusals (source, kind);

-- Serves the search for what the upstream is to be asked about.
CREATE INDEX refusals_ask_at ON refusals (ask_at) WHERE ask_at IS NOT NULL;

-- Serves the number of those that stand, and the walk through their identities.
CREATE INDEX refusals_standing ON refusals (id) WHERE accepted_at IS NULL;

-- Differences between this log and what somebody else says, within a bound. Nothing in `operations` follows
-- from them.
CREATE TABLE divergences (
    id         INTEGER PRIMARY KEY,
    source     TEXT    NOT NULL,  -- who says otherwise
    did        TEXT    NOT NULL,
    kind       TEXT    NOT NULL,
    subject    TEXT    NOT NULL,  -- what it is about, usually a CID
    ours       TEXT,              -- our entries, JSON
    theirs     TEXT,              -- theirs, as received
    first_seen INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL,
    closed_at  INTEGER,           -- when it was found to be gone
    -- What it counts with where bytes are bounded, about what it takes on disk: what strangers wrote, of which the DID
    -- is in an index too, and 400 for everything else of a row and its index entries.
    bytes      INTEGER NOT NULL GENERATED ALWAYS AS (
        coalesce(length(CAST(ours AS BLOB)), 0) + coalesce(length(CAST(theirs AS BLOB)), 0)
        + length(CAST(subject AS BLOB)) + 2 * length(CAST(did AS BLOB)) + 400) VIRTUAL,
    -- One record for each difference. Begins with the DID: serves "what differs about this
    -- identity" too.
    UNIQUE (did, kind, subject, source)
) STRICT;

-- Serves the list of what is open, and its number.
CREATE INDEX divergences_open ON divergences (id) WHERE closed_at IS NULL;

-- Serves the choice of what is deleted when there are too many: the oldest of a source and kind, but the first.
CREATE INDEX divergences_kind ON divergences (source, kind);

-- For people: `SELECT * FROM log WHERE sequence = 1`. Of a DID, these are the bytes in hexadecimal.
CREATE VIEW log AS SELECT
    iif(sequence > 0, sequence, NULL) AS sequence,
    lower(hex(did)) AS did,
    strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1000.0, 'unixepoch') AS created_at,
    signer,
    strftime('%Y-%m-%dT%H:%M:%fZ', nullified_by / 1000.0, 'unixepoch') AS nullified_by,
    strftime('%Y-%m-%dT%H:%M:%fZ', received_at / 1000.0, 'unixepoch') AS received_at,
    length(operation) AS bytes
FROM operations;
