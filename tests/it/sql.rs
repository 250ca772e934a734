//! The log in SQL, for people: what the views print is what the program writes, and the questions
//! of docs/SQL.md have answers.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use did_plc::{Timestamp, document, json};
use plc_replica::store::codec::{Interned, unpack};
use plc_testkit::Expected;
use plc_testkit::builder::Story;
use plc_testkit::profile::write_log;
use plc_testkit::spelling::spellings;
use serde_json::Value;

use crate::follow::{Running, entries};
use plc_testkit::fake_upstream::{FakeUpstream, LogEntry, load};
use plc_testkit::postgres::{Client, Database};

/// Follows a log into a database, and says when it has.
async fn follow(database: &Database, log: &[LogEntry]) -> Client {
    let upstream = FakeUpstream::start(log.to_vec()).await;
    let replica = Running::start(&database.url, &upstream.url()).await;
    replica.live_at(log.last().unwrap().seq).await;
    replica.end().await;
    database.client().await
}

/// Every kind of operation, with every text that can be in one.
fn all_kinds() -> Story {
    let mut story = Story::seeded(31);
    let odd = "\u{0}\u{1f}\u{7f}\"\\/\u{2028}é\u{202e}🦀\u{ffff}\\000";
    let (thief, recovery, p256) = (story.k256(), story.recovery.clone(), story.p256());
    let alice = story
        .create()
        .also_known_as([odd, "", "https://a.example", "at://alice.example", "at://b.example"])
        .verification_method(odd, odd)
        .service(odd, odd, odd)
        .accepted();
    let mut update = story.update(&alice);
    for name in ["33", "4", "0", "01", "-1", "4294967295", "", "a", "é", "__proto__"] {
        update = update.verification_method(name, name).service(name, "kind", "endpoint");
    }
    let update = update.accepted();
    let stolen = story.update(&alice).rotation_keys([&thief]).accepted();
    story.update(&alice).signed_by(&thief).handle("thief.example").accepted();
    story.after(&update).signed_by(&recovery).just_in_time_for(&stolen).accepted();
    story.update(&alice).empty_maps().also_known_as([]).accepted();
    story.update(&alice).also_known_as([&*"long ".repeat(20_000)]).accepted();
    let bob = story.create_legacy().handle("bob.example").host("pds.example").accepted();
    story.update(&bob).rotation_keys([&p256, &recovery]).accepted();
    story.tombstone(&bob).signed_by(&p256).accepted();
    for (handle, host) in [
        (odd, odd),
        ("at://handle.example", "http://host.example"),
        ("hthttps://tp://handle", "ftp://host.example"),
        ("", ""),
    ] {
        story.create_legacy().handle(handle).host(host).accepted();
    }
    for _ in 0..40 {
        let identity = story.create().accepted();
        story.update(&identity).atproto_key(&p256).accepted();
    }
    story
}

/// JSON as Postgres can hold it.
fn shown(json: &str) -> Value {
    serde_json::from_str(&json.replace("\\u0000", "␀")).unwrap()
}

/// The views print every operation and every identity as the directory does.
async fn prints_what_the_program_writes(log: &[LogEntry]) {
    let Some(database) = Database::create().await else { return };
    let mut client = follow(&database, log).await;
    let history = client
        .rows(
            "SELECT did, cid, operation, prev, nullified, nullified_by, type, sequence, created_at
         FROM history ORDER BY sequence",
        )
        .await;
    assert_eq!(history.len(), log.len());
    let mut heads = BTreeMap::new();
    for (row, entry) in history.iter().zip(log) {
        assert_eq!(row.get("did"), Some(&*entry.did));
        assert_eq!(row.get("cid"), Some(&*entry.cid), "{}", entry.operation);
        let operation: Value = serde_json::from_str(row.get("operation").unwrap()).unwrap();
        assert_eq!(operation, shown(&entry.operation));
        assert_eq!(row.get("prev"), operation["prev"].as_str());
        assert_eq!(row.get("type"), operation["type"].as_str());
        assert_eq!(row.get("nullified") == Some("t"), entry.nullified);
        assert_eq!(row.get("nullified_by").is_some(), entry.nullified);
        if !entry.nullified {
            heads.insert(&*entry.did, entry);
        }
    }

    let identities = client
        .rows(
            "SELECT *, to_json(also_known_as) AS aliases, to_json(rotation_keys) AS keys
         FROM identities ORDER BY did",
        )
        .await;
    assert_eq!(identities.len(), heads.len());
    for (row, (did, head)) in identities.iter().zip(heads) {
        assert_eq!(row.get("did"), Some(did));
        let signed = json::read_operation(&head.operation).unwrap();
        let mut data = Vec::new();
        document::write_data(&did.parse().unwrap(), &signed, &mut data).unwrap();
        let data = shown(&String::from_utf8(data).unwrap());
        let column = |name| -> Value { serde_json::from_str(row.get(name).unwrap()).unwrap() };
        assert_eq!(column("aliases"), data["alsoKnownAs"]);
        assert_eq!(column("keys"), data["rotationKeys"]);
        assert_eq!(column("services"), data["services"]);
        assert_eq!(column("verification_methods"), data["verificationMethods"]);
        assert_eq!(row.get("host"), data["services"]["atproto_pds"]["endpoint"].as_str());
        let aliases = data["alsoKnownAs"].as_array().unwrap();
        let handle = aliases.iter().find_map(|alias| alias.as_str()?.strip_prefix("at://"));
        assert_eq!(row.get("handle"), handle);
        let tombstoned = head.operation.contains("\"plc_tombstone\"");
        assert_eq!(row.get("tombstoned") == Some("t"), tombstoned, "{did}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_operation_is_printed_as_the_directory_does() {
    let story = all_kinds();
    assert!(story.log().iter().all(|entry| entry.expected == Expected::Accepted));
    prints_what_the_program_writes(&entries(&story)).await;
}

/// Who signed is told by the operation that `prev` names, however it spells the CID.
#[tokio::test(flavor = "multi_thread")]
async fn prev_in_another_spelling_names_the_same_operation() {
    let Some(database) = Database::create().await else { return };
    let mut story = Story::seeded(33);
    let alice = story.create().accepted();
    let mut named = Vec::new();
    for spelling in 0..3 {
        let head = story.head(&alice);
        let spelled = &spellings(&head.cid)[spelling];
        story.update(&alice).prev(spelled).accepted();
        named.push((spelled.clone(), head.cid));
    }
    let signing = story.signing.clone();
    let mut client = follow(&database, &entries(&story)).await;
    let rows = client
        .rows("SELECT prev, signer_key, plc_cid(plc_cid(prev)) AS named FROM history ORDER BY sequence")
        .await;
    assert_eq!(rows.len(), 4);
    for (row, (spelled, cid)) in rows[1..].iter().zip(&named) {
        assert_eq!(row.get("prev"), Some(&**spelled));
        assert_eq!(row.get("named"), Some(&**cid));
        assert_eq!(row.get("signer_key"), Some(signing.did_key()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_log_is_printed_as_the_directory_does() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("log");
    let mut file = std::fs::File::create(&path).unwrap();
    write_log(5, 3_000, &mut file, |_| {}).unwrap();
    let mut log = load(&path);
    // Who is nullified stands in no line of a sequenced export: whoever comes before a recovery.
    for at in 0..log.len() {
        let operation: Value = serde_json::from_str(&log[at].operation).unwrap();
        let (did, prev) = (log[at].did.clone(), operation["prev"].clone());
        let before = log[..at].iter_mut().rev().filter(|entry| entry.did == did);
        before
            .take_while(|entry| Some(&*entry.cid) != prev.as_str())
            .for_each(|entry| entry.nullified = true);
    }
    prints_what_the_program_writes(&log).await;
}

/// Numbers of one, two and three bytes, and every other token.
#[tokio::test(flavor = "multi_thread")]
async fn sql_unpacks_what_the_program_unpacks() {
    let Some(database) = Database::create().await else { return };
    plc_replica::store::Store::open(&database.url).await.unwrap();
    let mut client = database.client().await;
    let interned = Interned::default();
    for number in [0, 1, 127, 128, 383, 384, 16_255, 16_256, 32_767] {
        let text = format!(".{number}.example");
        interned.insert(number, &text).unwrap();
        let sql = format!("INSERT INTO interned VALUES ({number}, '{text}')");
        client.run(&sql).await;
    }
    let payload = |length| (0..length).map(|at| at as u8 ^ 0xa5).collect::<Vec<u8>>();
    let numbers: [&[u8]; 9] = [
        &[0x40],
        &[0x41],
        &[0xbf],
        &[0xc0, 0],
        &[0xc0, 255],
        &[0xc1, 0],
        &[0xfe, 255],
        &[0xff, 0x3f, 0x80],
        &[0xff, 0x7f, 0xff],
    ];
    let mut packed: Vec<Vec<u8>> = numbers.map(|number| [&[1], number].concat()).into();
    packed.extend(numbers.map(|number| [&[1, 0x34], number, b"\x05label\x2d"].concat()));
    packed.push([&[1, 0x38][..], &payload(64)].concat());
    packed.extend((0x39..0x3e).map(|form| [&[1, form][..], &payload(32), &[0x26]].concat()));
    packed.extend((0x39..0x3e).map(|form| [&[1, form][..], &[0; 32]].concat()));
    packed.extend((0x39..0x3e).map(|form| [&[1, form][..], &[255; 32]].concat()));
    for token in 0x30..0x34 {
        for length in [0, 1, 23, 24, 127, 128, 255, 256, 70_000_usize] {
            let mut item = vec![1, token];
            let mut left = length;
            while left > 127 {
                item.push(left as u8 | 0x80);
                left >>= 7;
            }
            item.push(left as u8);
            item.extend(payload(length));
            packed.push(item);
        }
    }
    packed.push([&[0][..], &payload(99)].concat());
    for packed in packed {
        let expected = unpack(&packed, &interned).unwrap();
        assert_eq!(unpacked(&mut client, &packed).await.unwrap(), expected, "{packed:x?}");
    }
    for damaged in [&[2, 0][..], &[1, 0x2f], &[1, 0x35], &[1, 0x42], &[1, 0x38, 1]] {
        assert!(unpacked(&mut client, damaged).await.is_err());
    }
}

/// What the function of the database makes of a packed operation.
async fn unpacked(client: &mut Client, packed: &[u8]) -> sqlx::Result<Vec<u8>> {
    let query = sqlx::query_scalar("SELECT plc_unpack($1)").bind(packed);
    query.fetch_one(&mut client.connection).await
}

/// What docs/SQL.md asks of Postgres, by the number of the question.
fn questions() -> BTreeMap<usize, String> {
    let text = include_str!("../../docs/SQL.md");
    let sections = text.split("\n### ").skip(1).filter_map(|section| {
        let number = section.split_once('.')?.0.parse().ok()?;
        let block = section.split_once("```sql\n-- Postgres\n")?.1;
        Some((number, block.split("```").next()?.to_owned()))
    });
    sections.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_questions_have_answers() {
    let Some(database) = Database::create().await else { return };
    let now = Timestamp::from(SystemTime::now());
    let ago = |hours: u64| (now - Duration::from_secs(3600 * hours)).to_string();
    let mut story = Story::seeded(32);
    let (thief, recovery, shared) = (story.k256(), story.recovery.clone(), story.k256());
    let keys = [&recovery, &shared];
    let alice = story.create().handle("wanted.example").at("2024-01-05T00:00:00.000Z").accepted();
    story.update(&alice).handle("other.example").at("2024-01-06T00:00:00.000Z").accepted();
    let stolen = story.update(&alice).rotation_keys([&thief]).accepted();
    let undone = story.after(&alice).signed_by(&recovery).handle("alice.example");
    let undone = undone.later_than(&stolen, Duration::from_secs(3600)).accepted();
    let bob = story.create().handle("wanted.example").rotation_keys(keys).signed_by(&shared);
    let bob = bob.at("2024-02-01T00:00:00.000Z").accepted();
    let moved = story.update(&bob).signed_by(&recovery).host("https://new.example");
    moved.at("2024-02-02T00:00:00.000Z").accepted();
    story.update(&bob).signed_by(&thief).refused("signature-invalid");
    let ended = story.create().at("2024-03-01T00:00:00.000Z").accepted();
    story.tombstone(&ended).at("2024-03-02T00:00:00.000Z").accepted();
    // One that nobody can overrule, one that is too old, and one that can be.
    story.update(&alice).at(&ago(100)).accepted();
    let open = story.update(&bob).signed_by(&shared).at(&ago(71)).accepted();
    story.update(&alice).signed_by(&recovery).at(&ago(1)).accepted();
    let mut client = follow(&database, &entries(&story)).await;
    // As if the log had been caught up before the newest operation came.
    client.run("UPDATE sources SET caught_up_at = 0").await;

    let questions = questions();
    assert_eq!(questions.len(), 10);
    let mut answers = BTreeMap::new();
    for (number, question) in questions {
        let question = question.replace("did:plc:ewvi7nxzyoun6zhxrhs64oiz", &alice.did);
        answers.insert(number, client.rows(&question).await);
    }
    let list = |number: usize, column: &str| -> Vec<&str> {
        answers[&number].iter().map(|row| row.get(column).unwrap_or("none")).collect()
    };
    assert_eq!(
        list(2, "handle"),
        [
            "wanted.example",
            "other.example",
            "other.example",
            "alice.example",
            "alice.example",
            "alice.example"
        ]
    );
    assert_eq!(list(2, "nullified"), ["f", "t", "t", "f", "f", "f"]);
    assert_eq!(list(2, "signer"), ["1", "1", "1", "0", "1", "0"]);
    assert_eq!(list(2, "signer_key")[3], recovery.did_key());
    assert_eq!(list(3, "host"), ["https://new.example", "https://pds.example.com"]);
    assert_eq!(list(3, "identities"), ["1", "1"]);
    assert_eq!(list(4, "from_host"), ["https://pds.example.com"]);
    assert_eq!(list(4, "to_host"), ["https://new.example"]);
    assert_eq!(list(10, "handle"), ["wanted.example"]);
    assert_eq!(list(10, "claimed_by"), [format!("{{{},{}}}", alice.did, bob.did)]);
    assert_eq!(list(7, "cid"), [&*open.cid]);
    assert_eq!(list(6, "undone_by"), [&*undone.cid, &*undone.cid]);
    assert_eq!(list(6, "undone_with"), [recovery.did_key(), recovery.did_key()]);
    assert_eq!(list(5, "key")[0], recovery.did_key());
    assert_eq!(list(5, "identities"), ["2", "1", "1"]);
    let days: Vec<u32> = list(1, "operations").iter().map(|day| day.parse().unwrap()).collect();
    assert_eq!(days.iter().sum::<u32>(), 11);
    assert_eq!(list(12, "operations"), ["3"]);
    assert_eq!(list(13, "kind"), ["signature-invalid"]);
}
