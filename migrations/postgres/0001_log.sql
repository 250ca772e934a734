-- The log, what was refused, and where the follower stands.
--
-- Times are milliseconds since 1970 (int8): the directory's own resolution, compared without
-- time zones. DIDs are the 15 bytes that their 24 characters encode. Text that strangers wrote is
-- bytea (UTF-8), since a Postgres text cannot hold U+0000 and their strings may. The functions
-- and views in the second half of this file print all of it for people.

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
    operation    bytea NOT NULL   -- the signed bytes, packed; the first byte names the codec
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

-- A chain is ordered by created_at, and its newest row that is not nullified is the head. Of equal times, which are
-- rare, `prev` says which comes first.
-- Serves lookups of one identity, the chains of a batch, and sweeps in the order of DIDs.
CREATE INDEX operations_chain ON operations (did, created_at);

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
    -- What the upstream stated under that number (text). It need not be what we hold under it: the line
    -- may have been refused, or the number may have been given to something else after the upstream
    -- went back. By it the upstream is asked whether it still has the log that was read.
    cursor_cid   bytea,
    epoch        int8 NOT NULL DEFAULT 0,  -- raised by each follower that takes over
    lease_until  timestamptz,              -- nobody takes over before; null: nobody has followed yet
    caught_up_at int8,                     -- when the log was caught up for the first time
    operations   int8 NOT NULL DEFAULT 0,  -- rows of `operations`, and how many of them are a
    identities   int8 NOT NULL DEFAULT 0,  -- genesis: counting them would read the whole log
    -- The log is read again behind the follower: once an hour after it was received, and then in rounds.
    second_reading int8 NOT NULL DEFAULT 0,  -- everything up to this number was read twice
    round          int8 NOT NULL DEFAULT 0,  -- in the round under way everything up to this number was read
    round_began_at int8,                     -- null: before the first round
    rounds         int8 NOT NULL DEFAULT 0,  -- how many were completed
    -- The numbers in the log are an earlier upstream's, until the log has been read to its end.
    renumbering    bool NOT NULL DEFAULT false,
    -- An upstream without our numbers, or without any, is read by time. The one that was last, up to which `createdAt`
    -- all of it was read, and was read twice; null: none yet.
    by_time        text,
    by_time_read   int8 NOT NULL DEFAULT 0,
    by_time_second int8 NOT NULL DEFAULT 0,
    refused_bytes  int8 NOT NULL DEFAULT 0,  -- the sum of `bytes` in `refusals`
    forgotten      int8 NOT NULL DEFAULT 0,  -- how many of its rows were deleted for being too many
    forgotten_up_to int8,                       -- the highest number that one of those stated
    divergence_bytes      int8 NOT NULL DEFAULT 0,  -- the same two of `divergences`
    forgotten_divergences int8 NOT NULL DEFAULT 0,
    -- Commits that took a number out of the log: who has read ahead of `claimed` before reads it anew.
    renumbered     int8 NOT NULL DEFAULT 0,
    commits        int8 NOT NULL DEFAULT 0,  -- how many there were
    committed_in   int8 NOT NULL DEFAULT 0,  -- the epoch of the last one
    -- What the follower knows that the log does not say (how fresh it is, how it stands with its upstreams), for the
    -- processes that only read: JSON, written with commits and whenever the lease is renewed.
    word           text,
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

-- The last commits, for processes that did not make them and have clients of the stream: which operations are new for
-- these. A row is written again when as many have come as are kept.
CREATE TABLE commits (
    slot   int4 PRIMARY KEY,  -- the number, modulo 4096
    number int8 NOT NULL,     -- the first commit is number 1
    epoch  int8 NOT NULL,     -- of the follower that made it: a number that a crash took back is given out again
    told   text               -- the operations by their numbers, as in `1-3,7`; null: too scattered to be listed
) WITH (
    -- Room for new versions of a row beside the old one, so that no index entry is written.
    fillfactor = 50,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0
);

-- Numbers under which the upstream states another operation, or another time, than it has stated before, which was taken
-- over. They are read once more, and are not here any more then.
CREATE TABLE unsettled (
    sequence int8 PRIMARY KEY,
    at       int8 NOT NULL,   -- when that was stated
    times    bool NOT NULL    -- whether it was another time
);

-- The SHA-256 of the lines of each volume of an archive that was imported whole, none of them refused: it is not read
-- again.
CREATE TABLE imported (
    content bytea PRIMARY KEY CHECK (length(content) = 32)
);

-- Serves the reverse look-up, where that is asked for: which identities ever claimed a handle, a host
-- or a key. A row is 32 bits of the value's SHA-256 and, below them, the first 32 of the DID: it
-- names a candidate, and what was claimed from when until when is read from the candidate's
-- operations. So a row is written once, never changed, and does no harm when it is too many. Both
-- halves in one number make it the smallest row that there is, 36 bytes and 20 in the index.
CREATE TABLE claims (
    pair int8 PRIMARY KEY
);

-- What was sent and we refused, as it was received, within a bound.
CREATE TABLE refusals (
    id          int8  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    did         bytea NOT NULL,  -- as stated, whatever it looks like
    sequence    int8,            -- as stated
    cid         bytea,           -- digest computed from the operation, when it could be
    kind        text  NOT NULL,
    detail      bytea NOT NULL,  -- for a person; quotes what came
    source      text  NOT NULL,  -- who stated it first
    line        bytea NOT NULL,
    key         bytea NOT NULL UNIQUE,    -- a SHA-256: the same is kept once
    stated_at   int8,            -- the time that the line states
    received_at int8  NOT NULL,
    accepted_at int8,            -- when it was found to be accepted after all; null: it stands
    asked       int4  NOT NULL DEFAULT 0, -- how often the upstream was asked about it since
    ask_at      int8,            -- when it is to be asked next; null: nothing is expected of that
    -- What it counts with where bytes are bounded: what strangers wrote, the DID twice, and 300 for everything else of
    -- a row and its index entries. That is about what it takes on disk in SQLite; here it takes half as much again.
    bytes       int8  NOT NULL GENERATED ALWAYS AS (
        octet_length(line) + octet_length(detail) + 2 * octet_length(did) + 300) STORED
);

-- Serves "what was refused of this identity". A hash index, because a stated DID can be longer
-- than a B-tree takes.
CREATE INDEX refusals_did ON refusals USING hash (did);

-- Serves the choice of what is deleted when there are too many: the oldest of a source and kind, and of each kind of a
-- source.
CREATE INDEX refusals_kind ON refusals (source, kind, id);

-- Serves the search for what the upstream is to be asked about.
CREATE INDEX refusals_ask_at ON refusals (ask_at, id) WHERE ask_at IS NOT NULL;

-- Serves the number of those that stand, and the walk through their identities.
CREATE INDEX refusals_standing ON refusals (id) WHERE accepted_at IS NULL;

-- Differences between this log and what somebody else says, within a bound. Nothing in `operations` follows
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
    identity   bytea NOT NULL UNIQUE,  -- SHA-256 of source, did, kind and subject: one record for each
    -- What it counts with where bytes are bounded: what strangers wrote, the DID twice, and 400 for everything else of
    -- a row and its index entries.
    bytes      int8  NOT NULL GENERATED ALWAYS AS (
        coalesce(octet_length(ours), 0) + coalesce(octet_length(theirs), 0) + octet_length(subject)
        + 2 * octet_length(did) + 400) STORED
);

-- Serves "what is known to differ about this identity".
CREATE INDEX divergences_did ON divergences USING hash (did);

-- Serves the list of what is open, and its number.
CREATE INDEX divergences_open ON divergences (id) WHERE closed_at IS NULL;

-- Serves the choice of what is deleted when there are too many: the oldest of a source and kind, but the first.
CREATE INDEX divergences_kind ON divergences (source, kind, id);

-- For people who live in SQL: views of the log as text, and the functions that they are made of. The
-- program uses none of it. docs/SQL.md has ten useful queries, and what they cost.
--
-- Functions that raise errors name the damage; a view that meets one stops, as `plc-replica fsck`
-- would report it.

-- Text forms of bytes and numbers.

-- RFC 4648 base32 in lower case without padding.
CREATE FUNCTION plc_base32(bytes bytea) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    letters CONSTANT text := 'abcdefghijklmnopqrstuvwxyz234567';
    bits int8;  -- forty of them, which are eight letters
    said text := '';
BEGIN
    FOR start IN 1..octet_length(bytes) BY 5 LOOP
        bits := ('x' || rpad(encode(substring(bytes FROM start FOR 5), 'hex'), 10, '0'))::bit(40)::int8;
        said := said
            || substr(letters, (bits >> 35)::int4 + 1, 1) || substr(letters, (bits >> 30 & 31)::int4 + 1, 1)
            || substr(letters, (bits >> 25 & 31)::int4 + 1, 1) || substr(letters, (bits >> 20 & 31)::int4 + 1, 1)
            || substr(letters, (bits >> 15 & 31)::int4 + 1, 1) || substr(letters, (bits >> 10 & 31)::int4 + 1, 1)
            || substr(letters, (bits >> 5 & 31)::int4 + 1, 1) || substr(letters, (bits & 31)::int4 + 1, 1);
    END LOOP;
    RETURN left(said, (octet_length(bytes) * 8 + 4) / 5);
END
$$;

-- SELECT plc_did(did) FROM operations
CREATE FUNCTION plc_did(did bytea) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT 'did:plc:' || plc_base32(did)
$$;

-- SELECT * FROM operations WHERE did = plc_did('did:plc:ewvi7nxzyoun6zhxrhs64oiz')
CREATE FUNCTION plc_did(did text) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT string_agg(decode(lpad(to_hex(groups.value), 10, '0'), 'hex'), ''::bytea ORDER BY first)
    FROM (
        SELECT first, sum((strpos('abcdefghijklmnopqrstuvwxyz234567', substr(did, first + at, 1)) - 1)::int8
                          << (5 * (7 - at)))::int8 AS value
        FROM generate_series(9, 25, 8) AS first, generate_series(0, 7) AS at
        GROUP BY first
    ) AS groups
    WHERE did ~ '^did:plc:[a-z2-7]{24}$'
$$;

-- SELECT plc_cid(cid) FROM refusals: a CID from the SHA-256 of the signed operation
CREATE FUNCTION plc_cid(digest bytea) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT 'b' || plc_base32('\x01711220'::bytea || digest)
$$;

-- The digest of a CID. A `prev` that was accepted may spell it otherwise than the specification: in base58,
-- with padding, or with longer numbers in front. The digest is the last 32 bytes in each of these.
CREATE FUNCTION plc_cid(cid text) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    base32 CONSTANT text := 'abcdefghijklmnopqrstuvwxyz234567';
    base58 CONSTANT text := '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz';
    alphabet text := base58;
    -- What begins with Q is base58 without a prefix.
    digits text := CASE WHEN starts_with(cid, 'Q') THEN cid ELSE substr(cid, 2) END;
    number numeric := 0;
    digest bytea := '\x';
BEGIN
    IF starts_with(cid, 'b') THEN
        alphabet := base32;
        digits := rtrim(digits, '=');
    END IF;
    FOR place IN 1..length(digits) LOOP
        number := number * length(alphabet) + strpos(alphabet, substr(digits, place, 1)) - 1;
    END LOOP;
    IF alphabet = base32 THEN
        -- Spare bits at the end.
        number := div(number, 2::numeric ^ (length(digits) * 5 % 8));
    END IF;
    FOR place IN 1..32 LOOP
        digest := decode(lpad(to_hex(mod(number, 256)::int4), 2, '0'), 'hex') || digest;
        number := div(number, 256);
    END LOOP;
    RETURN digest;
END
$$;

-- `did:key:` of a key: its codec and its compressed point, 35 bytes, in base58btc.
CREATE FUNCTION plc_key(key bytea) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    letters CONSTANT text := '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz';
    ten_digits CONSTANT numeric := 430804206899405824;  -- 58 to the power of 10
    value numeric := 0;
    digits int8;
    said text := '';
BEGIN
    FOR start IN 1..35 BY 7 LOOP
        value := value * 72057594037927936  -- 2 to the power of 56
            + ('x' || encode(substring(key FROM start FOR 7), 'hex'))::bit(56)::int8;
    END LOOP;
    -- The codec is no small number, so that there are always 48 digits.
    FOR part IN 1..5 LOOP
        digits := value % ten_digits;
        value := div(value, ten_digits);
        FOR digit IN 1..(CASE part WHEN 5 THEN 8 ELSE 10 END) LOOP
            said := substr(letters, (digits % 58)::int4 + 1, 1) || said;
            digits := digits / 58;
        END LOOP;
    END LOOP;
    RETURN 'did:key:z' || said;
END
$$;

-- SELECT plc_time(created_at) FROM operations
CREATE FUNCTION plc_time(millis int8) RETURNS timestamptz
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT to_timestamp(millis / 1000.0)
$$;

-- SELECT count(*) FROM operations WHERE created_at >= plc_millis('2026-01-01Z')
CREATE FUNCTION plc_millis(at timestamptz) RETURNS int8
LANGUAGE sql STABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE
        WHEN at = 'infinity' THEN 9223372036854775807
        WHEN at = '-infinity' THEN -9223372036854775808
        ELSE round(extract(epoch FROM at) * 1000)::int8
    END
$$;

-- Text that is known to be UTF-8. U+0000, which Postgres cannot hold, is shown as its picture ␀.
CREATE FUNCTION plc_utf8(utf8 bytea) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    IF position('\x00'::bytea IN utf8) = 0 THEN
        RETURN convert_from(utf8, 'UTF8');
    END IF;
    RETURN (
        SELECT convert_from(string_agg(
            CASE get_byte(utf8, at) WHEN 0 THEN '\xe29080' ELSE substring(utf8 FROM at + 1 FOR 1) END,
            ''::bytea ORDER BY at), 'UTF8')
        FROM generate_series(0, octet_length(utf8) - 1) AS at
    );
END
$$;

-- Text of strangers, which may be anything; escaped as bytea where Postgres cannot hold it. Not for
-- parallel workers: they cannot catch an error.
CREATE FUNCTION plc_text(utf8 bytea) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
    RETURN convert_from(utf8, 'UTF8');
EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
    RETURN encode(utf8, 'escape');
END
$$;

-- Operations unpacked.

-- The head of a DAG-CBOR text of so many bytes.
CREATE FUNCTION plc_text_head(length int4) RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT decode(CASE
        WHEN length < 24 THEN to_hex(96 + length)
        WHEN length < 256 THEN '78' || lpad(to_hex(length), 2, '0')
        WHEN length < 65536 THEN '79' || lpad(to_hex(length), 4, '0')
        ELSE '7a' || lpad(to_hex(length), 8, '0')
    END, 'hex')
$$;

-- The signed DAG-CBOR of an operation as it is stored: what its CID is the hash of.
--
-- SELECT plc_cid(sha256(plc_unpack(operation))) FROM operations
--
-- Two codecs: 0 is the bytes as they are; 1 is one token after another, each a phrase that operations
-- say often, or a text in one of a few forms.
CREATE FUNCTION plc_unpack(packed bytea) RETURNS bytea
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE COST 5000 AS $$
DECLARE
    -- What a token below 48 stands for, and the form of the text that comes with it. Part of the
    -- stored format: a test compares it with the program's own table.
    phrases CONSTANT bytea[] := ARRAY[
        '\xa763736967', '\xa363736967',
        '\x6470726576f664747970656d706c635f6f7065726174696f6e687365727669636573a16b617470726f746f5f706473a264747970657819417470726f746f506572736f6e616c4461746153657276657268656e64706f696e74',
        '\x6470726576',
        '\x64747970656d706c635f6f7065726174696f6e687365727669636573a16b617470726f746f5f706473a264747970657819417470726f746f506572736f6e616c4461746153657276657268656e64706f696e74',
        '\x6b616c736f4b6e6f776e417381', '\x6b616c736f4b6e6f776e417381',
        '\x6c726f746174696f6e4b65797382', '\x6c726f746174696f6e4b65797381',
        '\x6c726f746174696f6e4b65797383',
        '\x73766572696669636174696f6e4d6574686f6473a167617470726f746f',
        '\x73766572696669636174696f6e4d6574686f6473a167617470726f746f',
        '\x73766572696669636174696f6e4d6574686f6473a167617470726f746f',
        '\x73766572696669636174696f6e4d6574686f6473a167617470726f746f',
        '\x73766572696669636174696f6e4d6574686f6473a167617470726f746f',
        '\x64747970656d706c635f746f6d6273746f6e65',
        '\x6470726576f66474797065666372656174656668616e646c65', '\x6773657276696365',
        '\x6a7369676e696e674b6579', '\x6a7369676e696e674b6579', '\x6a7369676e696e674b6579',
        '\x6b7265636f766572794b6579', '\x63736967', '\x6470726576f6', '\x6470726576',
        '\x64747970656d706c635f6f7065726174696f6e687365727669636573', '\x6474797065',
        '\x68656e64706f696e74', '\x687365727669636573', '\x6b616c736f4b6e6f776e4173',
        '\x6c726f746174696f6e4b657973', '\x73766572696669636174696f6e4d6574686f6473',
        '\x67617470726f746f', '\x6b617470726f746f5f706473',
        '\x7819417470726f746f506572736f6e616c44617461536572766572',
        '\x6f617470726f746f5f6c6162656c6572', '\x6e417470726f746f4c6162656c6572',
        '\x6d617470726f746f5f6c6162656c', '\xa0', '\xa1', '\xa2', '\xa3', '\x80', '\x81', '\x82',
        '\xf6', '\x60'
    ];
    forms CONSTANT int4[] := '{1,1,0,2,0,7,0,0,0,0,3,4,5,6,0,0,0,0,3,4,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}';
    -- The forms.
    no_text CONSTANT int4 := 0;
    signature CONSTANT int4 := 1;   -- 64 bytes, as base64url
    cid CONSTANT int4 := 2;         -- a digest
    first_key CONSTANT int4 := 3;   -- 3 to 6: an X coordinate of one of four kinds of keys
    last_key CONSTANT int4 := 6;
    handle CONSTANT int4 := 7;      -- a label and the number of what follows it
    numbered CONSTANT int4 := 8;    -- a row of `interned`
    plain CONSTANT int4 := 9;       -- the length and the bytes
    raw CONSTANT int4 := 10;        -- the same, and no text
    -- Codec of the key, and first byte of its point.
    key_starts CONSTANT bytea[] := '{"\\xe70102","\\xe70103","\\x802402","\\x802403"}';

    length CONSTANT int4 := octet_length(packed);
    at int4 := 1;  -- the next byte, from 0 on
    token int4;
    form int4;
    number int4;
    bytes int4;    -- how many follow
    shift int4;
    said bytea;    -- a text
    said_before bytea;
    parts bytea[] := '{}';
BEGIN
    CASE get_byte(packed, 0)
        WHEN 0 THEN RETURN substring(packed FROM 2);
        WHEN 1 THEN NULL;
        ELSE RAISE 'an operation with an unknown codec: %', get_byte(packed, 0);
    END CASE;
    WHILE at < length LOOP
        token := get_byte(packed, at);
        at := at + 1;
        said_before := '';
        IF token < 48 THEN
            parts := parts || phrases[token + 1];
            form := forms[token + 1];
        ELSIF token >= 64 THEN
            form := numbered;
        ELSIF token BETWEEN 56 AND 61 THEN
            form := token - 55;
        ELSE
            form := CASE token WHEN 48 THEN plain WHEN 49 THEN plain WHEN 50 THEN plain
                               WHEN 51 THEN raw WHEN 52 THEN handle END;
            said_before := CASE token WHEN 49 THEN 'at://'::bytea WHEN 50 THEN 'https://'::bytea ELSE '' END;
        END IF;

        IF form = no_text THEN
            CONTINUE;
        ELSIF form IN (numbered, handle) THEN
            IF form = handle THEN
                token := get_byte(packed, at);
                at := at + 1;
            END IF;
            IF token < 192 THEN
                number := token - 64;
            ELSIF token < 255 THEN
                number := 128 + (token - 192) * 256 + get_byte(packed, at);
                at := at + 1;
            ELSE
                number := get_byte(packed, at) * 256 + get_byte(packed, at + 1);
                at := at + 2;
            END IF;
            SELECT text INTO said FROM interned WHERE id = number;
            IF NOT FOUND THEN
                RAISE 'the text with number % is missing', number;
            END IF;
            IF form = handle THEN
                bytes := get_byte(packed, at);
                said := 'at://'::bytea || substring(packed FROM at + 2 FOR bytes) || said;
                at := at + 1 + bytes;
            END IF;
        ELSIF form = signature THEN
            said := convert_to(translate(encode(substring(packed FROM at + 1 FOR 64), 'base64'), E'+/=\n', '-_'), 'UTF8');
            at := at + 64;
        ELSIF form = cid THEN
            said := convert_to(plc_cid(substring(packed FROM at + 1 FOR 32)), 'UTF8');
            at := at + 32;
        ELSIF form BETWEEN first_key AND last_key THEN
            said := convert_to(plc_key(key_starts[form - first_key + 1] || substring(packed FROM at + 1 FOR 32)), 'UTF8');
            at := at + 32;
        ELSIF form IN (plain, raw) THEN
            -- Seven bits a byte, the lowest first; the highest bit says that more follow.
            bytes := 0;
            shift := 0;
            LOOP
                number := get_byte(packed, at);
                at := at + 1;
                bytes := bytes | ((number & 127) << shift);
                shift := shift + 7;
                EXIT WHEN number < 128;
            END LOOP;
            said := said_before || substring(packed FROM at + 1 FOR bytes);
            at := at + bytes;
        ELSE
            RAISE 'an operation with an unknown token: %', token;
        END IF;
        IF form <> raw THEN
            parts := parts || plc_text_head(octet_length(said));
        END IF;
        parts := parts || said;
    END LOOP;
    IF at <> length THEN
        RAISE 'the packed bytes end in the middle of a token';
    END IF;
    RETURN (SELECT string_agg(part, ''::bytea ORDER BY place) FROM unnest(parts) WITH ORDINALITY AS all_parts (part, place));
END
$$;

-- An operation as the directory prints it, from its DAG-CBOR.
--
-- SELECT plc_json(plc_unpack(operation)) FROM operations
CREATE FUNCTION plc_json(signed bytea) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 5000 AS $$
DECLARE
    length CONSTANT int4 := octet_length(signed);
    at int4 := 0;             -- the next byte
    head int4;
    size int4;                -- bytes of a text, items of an array, entries of a map
    bytes int4;               -- that hold this size
    missing int4[] := '{}';   -- items still to come in each open array or map; keys and values both count
    ends text[] := '{}';      -- how each ends
    depth int4 := 0;
    parts text[] := '{}';
BEGIN
    WHILE at < length LOOP
        head := get_byte(signed, at);
        at := at + 1;
        IF depth > 0 THEN
            missing[depth] := missing[depth] - 1;
        END IF;
        IF head = 246 THEN
            parts := parts || 'null'::text;
        ELSE
            size := head & 31;
            IF size BETWEEN 24 AND 26 THEN
                bytes := 1 << (size - 24);
                size := 0;
                FOR place IN at..at + bytes - 1 LOOP
                    size := size << 8 | get_byte(signed, place);
                END LOOP;
                at := at + bytes;
            END IF;
            CASE head >> 5
                WHEN 3 THEN
                    parts := parts || to_json(plc_utf8(substring(signed FROM at + 1 FOR size)))::text;
                    at := at + size;
                WHEN 4 THEN
                    parts := parts || '['::text;
                    missing := missing || size;
                    ends := ends || ']'::text;
                    depth := depth + 1;
                WHEN 5 THEN
                    parts := parts || '{'::text;
                    missing := missing || size * 2;
                    ends := ends || '}'::text;
                    depth := depth + 1;
                ELSE
                    RAISE 'a value that no operation holds, at byte %', at - 1;
            END CASE;
            -- The first item of what was just opened has nothing before it.
            CONTINUE WHEN head >> 5 <> 3 AND size > 0;
        END IF;
        WHILE depth > 0 AND missing[depth] = 0 LOOP
            parts := parts || ends[depth];
            depth := depth - 1;
            missing := missing[:depth];
            ends := ends[:depth];
        END LOOP;
        IF depth > 0 THEN
            parts := parts || CASE WHEN ends[depth] = '}' AND missing[depth] % 2 = 1 THEN ':'::text ELSE ',' END;
        END IF;
    END LOOP;
    RETURN array_to_string(parts, '')::jsonb;
END
$$;

-- What an operation says of its identity, in today's form: of a legacy `create` as the directory shows
-- it, of a tombstone nothing.
CREATE FUNCTION plc_data(operation jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE operation->>'type'
        WHEN 'create' THEN jsonb_build_object(
            'verificationMethods', jsonb_build_object('atproto', operation->'signingKey'),
            'rotationKeys', jsonb_build_array(operation->'recoveryKey', operation->'signingKey'),
            'alsoKnownAs', jsonb_build_array(CASE
                WHEN starts_with(operation->>'handle', 'at://') THEN operation->>'handle'
                -- Of each the first.
                ELSE 'at://' || regexp_replace(regexp_replace(operation->>'handle', 'http://', ''), 'https://', '')
            END),
            'services', jsonb_build_object('atproto_pds', jsonb_build_object(
                'type', 'AtprotoPersonalDataServer',
                'endpoint', CASE WHEN operation->>'service' ~ '^https?://' THEN '' ELSE 'https://' END
                            || (operation->>'service'))))
        WHEN 'plc_operation' THEN operation - '{sig,prev,type}'::text[]
        ELSE '{}'
    END
$$;

CREATE FUNCTION plc_texts(list jsonb) RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(array_agg(item ORDER BY place), '{}')
    FROM jsonb_array_elements_text(list) WITH ORDINALITY AS items (item, place)
$$;

-- The first alias that is a handle, without `at://`: a claim, which nobody here has checked.
CREATE FUNCTION plc_handle(also_known_as jsonb) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT substr(item, 6) FROM jsonb_array_elements_text(also_known_as) WITH ORDINALITY AS items (item, place)
    WHERE starts_with(item, 'at://') ORDER BY place LIMIT 1
$$;

-- The views. What a query does not name is not computed; what it does name of an operation's
-- content takes the unpacking of each row that it reads. So say which rows by what has an index:
-- `identity` (the DID's bytes), `sequence`, or the functions below.

-- Every operation, nullified ones included.
CREATE VIEW history AS
    SELECT plc_did(log.did) AS did,
           plc_cid(sha256(read.signed)) AS cid,
           log.sequence,
           plc_time(log.created_at) AS created_at,
           plc_time(log.received_at) AS received_at,
           log.nullified_by IS NOT NULL AS nullified,
           -- When, and the CID of the operation that did it.
           plc_time(log.nullified_by) AS nullified_at,
           (SELECT plc_cid(sha256(plc_unpack(later.operation))) FROM operations AS later
            WHERE later.did = log.did AND later.created_at = log.nullified_by AND later.ctid <> log.ctid
            -- Of equal times one that stands before one that was undone itself.
            ORDER BY later.nullified_by NULLS FIRST LIMIT 1) AS nullified_by,
           -- Index of the rotation key that signed it, and the key: of a genesis one of its own, later one of
           -- those of the operation that `prev` names.
           log.signer,
           CASE
               WHEN read.operation->>'prev' IS NULL THEN read.data->'rotationKeys'->>log.signer
               ELSE (
                   SELECT plc_data(plc_json(plc_unpack(before.operation)))->'rotationKeys'->>log.signer
                   FROM operations AS before
                   WHERE before.did = log.did AND before.created_at <= log.created_at
                     AND sha256(plc_unpack(before.operation)) = plc_cid(read.operation->>'prev')
               )
           END AS signer_key,
           read.operation->>'type' AS type,
           plc_handle(read.data->'alsoKnownAs') AS handle,
           read.data->'services'->'atproto_pds'->>'endpoint' AS host,
           plc_texts(read.data->'rotationKeys') AS rotation_keys,
           coalesce(read.data->'verificationMethods', '{}') AS verification_methods,
           -- As it was signed. In another spelling than the specification's it is no `cid` of this view;
           -- plc_cid(plc_cid(prev)) is.
           read.operation->>'prev' AS prev,
           read.operation,
           octet_length(log.operation) AS stored_bytes,
           log.did AS identity,
           log.created_at AS created_millis
    FROM operations AS log,
         -- OFFSET keeps each step a value that is computed once a row, and only where it is used.
         LATERAL (
             SELECT signed, operation, plc_data(operation) AS data
             FROM (
                 SELECT signed, plc_json(signed) AS operation
                 FROM (SELECT plc_unpack(log.operation) AS signed OFFSET 0) AS unpacked
                 OFFSET 0
             ) AS printed
             OFFSET 0
         ) AS read;

-- The current state of every identity.
CREATE VIEW identities AS
    SELECT plc_did(head.did) AS did,
           plc_handle(read.data->'alsoKnownAs') AS handle,
           plc_texts(read.data->'alsoKnownAs') AS also_known_as,
           read.data->'services'->'atproto_pds'->>'endpoint' AS host,
           coalesce(read.data->'services', '{}') AS services,
           plc_texts(read.data->'rotationKeys') AS rotation_keys,
           coalesce(read.data->'verificationMethods', '{}') AS verification_methods,
           (SELECT plc_time(min(genesis.created_at)) FROM operations AS genesis
            WHERE genesis.did = head.did) AS created_at,
           plc_time(head.created_at) AS updated_at,
           read.data = '{}' AS tombstoned,
           head.did AS identity
    FROM (
             -- Backwards, so that the index has this order.
             SELECT DISTINCT ON (did) did, created_at
             FROM operations WHERE nullified_by IS NULL
             ORDER BY did DESC, created_at DESC
         ) AS head,
         LATERAL (
             SELECT plc_data(operation) AS data
             FROM (
                 SELECT plc_json(plc_unpack(last.operation)) AS operation FROM operations AS last
                 WHERE last.did = head.did AND last.created_at = head.created_at AND last.nullified_by IS NULL
                   -- Of equal times, which are rare, the one that none of the others goes on from.
                   AND NOT EXISTS (
                       SELECT FROM operations AS later
                       WHERE later.did = head.did AND later.created_at = head.created_at
                         AND later.nullified_by IS NULL AND later.ctid <> last.ctid
                         AND plc_json(plc_unpack(later.operation))->>'prev'
                             = plc_cid(sha256(plc_unpack(last.operation))))
                 LIMIT 1
             ) AS printed
             OFFSET 0
         ) AS read;

-- SELECT * FROM plc_identity('did:plc:ewvi7nxzyoun6zhxrhs64oiz')
CREATE FUNCTION plc_identity(did text) RETURNS SETOF identities LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT * FROM identities WHERE identity = plc_did(plc_identity.did)
$$;

-- SELECT * FROM plc_history('did:plc:ewvi7nxzyoun6zhxrhs64oiz') ORDER BY created_at
CREATE FUNCTION plc_history(did text) RETURNS SETOF history LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT * FROM history WHERE identity = plc_did(plc_history.did)
$$;

-- What was created from a time on, and before another: SELECT * FROM plc_since(now() - interval '1 day')
CREATE FUNCTION plc_since(from_time timestamptz, until_time timestamptz DEFAULT 'infinity')
RETURNS SETOF history LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT * FROM history
    WHERE created_millis >> 16 BETWEEN plc_millis(from_time) >> 16 AND plc_millis(until_time) >> 16
      AND created_millis >= plc_millis(from_time) AND created_millis < plc_millis(until_time)
$$;

CREATE VIEW readable_refusals AS
    SELECT id, plc_text(did) AS did, sequence, plc_cid(cid) AS cid, kind, plc_text(detail) AS detail,
           source, plc_text(line) AS line, plc_time(received_at) AS received_at,
           plc_time(accepted_at) AS accepted_at, asked, plc_time(ask_at) AS ask_at
    FROM refusals;

CREATE VIEW readable_divergences AS
    SELECT id, plc_text(source) AS source, plc_text(did) AS did, kind, plc_text(subject) AS subject,
           plc_text(ours) AS ours, plc_text(theirs) AS theirs, plc_time(first_seen) AS first_seen,
           plc_time(last_seen) AS last_seen, plc_time(closed_at) AS closed_at
    FROM divergences;
