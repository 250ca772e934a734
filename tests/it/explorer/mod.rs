//! The pages for people: what is on them, what is not, and what a browser makes of them.

mod browser;
mod stories;

use std::path::Path;

use reqwest::redirect::Policy;
use tempfile::TempDir;
use url::form_urlencoded::byte_serialize;

use self::browser::Browser;
use self::stories::{OVERRIDE, SCRIPT, Stories};
use crate::follow::{Running, entries};
use crate::process::run;
use crate::skip::skipped;
use plc_testkit::fake_upstream::FakeUpstream;

/// A replica that has followed all stories.
struct Explored {
    stories: Stories,
    replica: Running,
    client: reqwest::Client,
    upstream: FakeUpstream,
    folder: TempDir,
}

impl Explored {
    async fn followed() -> Explored {
        let stories = Stories::told();
        let log = entries(&stories.story);
        let last = log.last().unwrap().seq;
        let upstream = FakeUpstream::start(log).await;
        let folder = TempDir::new().unwrap();
        let url = format!("sqlite://{}", folder.path().join("plc.db").display());
        let replica = Running::start(&url, &upstream.url()).await;
        replica.live_at(last).await;
        let client = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
        Explored { stories, replica, client, upstream, folder }
    }

    /// Builds the index of claims.
    async fn index(&self) {
        let store = &self.replica.store;
        store.keep_claims().await.unwrap();
        while !store.claims_index().await.unwrap().unwrap().is_complete() {
            store.build_claims(1_000).await.unwrap();
        }
    }

    async fn answer(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.replica.url())).send().await.unwrap()
    }

    async fn page(&self, path: &str) -> String {
        let answer = self.answer(path).await;
        assert_eq!(answer.status(), 200, "{path}");
        answer.text().await.unwrap()
    }
}

/// What is between the start tags `<li class="entry …">`, newest first.
fn shown_entries(page: &str) -> Vec<&str> {
    page.split("<li class=\"entry").skip(1).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_says_what_each_operation_changed() {
    let told = Explored::followed().await;
    let did = &told.stories.plain.did;
    let page = told.page(&format!("/explore/{did}")).await;
    assert!(page.contains("<title>alice.example.org — did:plc:"));
    let entries = shown_entries(&page);
    let headlines = ["Host changed", "Handle changed", "Created"];
    assert_eq!(entries.len(), headlines.len());
    for (entry, headline) in entries.iter().zip(headlines) {
        assert!(entry.contains(headline), "{headline}: {entry}");
        assert!(entry.contains("verified here"));
    }
    assert!(entries[0].contains(">current<") && !entries[1].contains(">current<"));
    let handle = |tag: &str, name: &str| {
        entries[1].split(&format!("<{tag}>")).nth(1).is_some_and(|rest| rest.contains(name))
    };
    assert!(handle("del", "alice.example.com") && handle("ins", "alice.example.org"));
    assert!(!page.contains("<svg class=\"tree\""), "nothing forks");

    let page = told.page(&format!("/explore/{did}?change=handle")).await;
    assert_eq!(shown_entries(&page).len(), 2);
    let page = told.page(&format!("/explore/{did}?change=nonsense%22%3E")).await;
    assert_eq!(shown_entries(&page).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn recoveries_are_seen_with_what_they_undid() {
    let told = Explored::followed().await;
    let page = told.page(&format!("/explore/{}", told.stories.recovered.did)).await;
    assert!(page.contains("<svg class=\"tree\""));
    assert_eq!(page.matches(">nullified<").count(), 9);
    assert_eq!(page.matches("Undoes 3 operations").count(), 3);
    assert_eq!(page.matches(", a recovery").count(), 3);
    assert!(page.contains("id=\"refused\"") && page.contains("signature-invalid"));
    let page = told.page(&format!("/explore/{}?change=recovery", told.stories.recovered.did)).await;
    assert_eq!(shown_entries(&page).len(), 3);

    let page = told.page(&format!("/explore/{}", told.stories.untombstoned.did)).await;
    assert!(page.contains("Undone by") && !page.contains("Ended by a tombstone</strong>"));
    let page = told.page(&format!("/explore/{}", told.stories.ended.did)).await;
    assert!(page.contains("Ended by a tombstone</strong>") && page.contains("gone.example.com"));
    let page = told.page(&format!("/explore/{}", told.stories.contested.did)).await;
    assert_eq!(page.matches("Can still be undone").count(), 1);
}

/// The highest key can nullify the first update, and the second with it, though it has signed the
/// second itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_builds_on_something_contestable_is_shown_to_be_contestable_with_it() {
    let told = Explored::followed().await;
    let did = &told.stories.built_on.did;
    let page = told.page(&format!("/explore/{did}")).await;
    let [second, first, genesis] = shown_entries(&page)[..] else { panic!("three operations") };
    let until = |entry: &str| {
        let open = entry.split("Can still be undone").nth(1)?;
        Some(open.split("datetime=\"").nth(1)?.split('"').next()?.to_owned())
    };
    let verdicts = told.page(&format!("/{did}/log/verdicts")).await;
    let verdicts: serde_json::Value = serde_json::from_str(&verdicts).unwrap();
    for (index, entry) in [genesis, first, second].into_iter().enumerate() {
        let verdict = verdicts["verdicts"][index]["contestableUntil"].as_str();
        assert_eq!(until(entry).as_deref(), verdict, "{entry}");
        assert_eq!(verdict.is_some(), index > 0);
    }
    assert_eq!(until(first), until(second));
    assert!(second.contains("which it builds on"));
}

/// From 0, as the list in the operation is indexed.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_key_has_the_same_number_wherever_it_is_named() {
    let told = Explored::followed().await;
    let did = &told.stories.built_on.did;
    let verdicts = told.page(&format!("/{did}/log/verdicts")).await;
    let verdicts: serde_json::Value = serde_json::from_str(&verdicts).unwrap();
    let numbers = [0, 1, 2].map(|place| verdicts["verdicts"][place]["signedBy"]["index"].as_u64());
    assert_eq!(numbers, [Some(1), Some(1), Some(0)]);
    let page = told.page(&format!("/explore/{did}")).await;
    let database = format!("sqlite://{}", told.folder.path().join("plc.db").display());
    let history = run(&["history", did, "--database", &database]).out;
    let lines = history.lines().filter(|line| line.contains("signed by"));
    let entries = shown_entries(&page).into_iter().rev();
    for ((number, entry), line) in numbers.into_iter().flatten().zip(entries).zip(lines) {
        assert!(entry.contains(&format!("rotation key {number} of ")), "{entry}");
        assert!(line.contains(&format!("rotation key {number}, ")), "{line}");
    }
    assert!(page.contains("by rotation key 0 of "), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_history_is_turned_page_by_page_and_links_stay() {
    let told = Explored::followed().await;
    let did = &told.stories.long.did;
    let mut path = format!("/explore/{did}");
    let mut seen = 0;
    loop {
        let page = told.page(&path).await;
        let links = shown_entries(&page);
        for link in &links {
            let cid = link.split("id=\"").nth(1).unwrap().split('"').next().unwrap();
            let href = link.split("href=\"").nth(1).unwrap().split('"').next().unwrap();
            let (linked, fragment) = href.split_once('#').unwrap();
            assert_eq!(fragment, cid);
            if seen % 10 == 0 {
                assert!(told.page(linked).await.contains(&format!("id=\"{cid}\"")));
            }
            seen += 1;
        }
        let Some(at) = page.find("Older operations") else { break };
        let href = page[..at].rsplit("href=\"").next().unwrap().split('"').next().unwrap();
        path = href.split('#').next().unwrap().replace("&amp;", "&");
    }
    assert_eq!(seen, 60);
}

/// No text of an operation becomes markup, an attribute, a link or a direction.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_texts_stay_texts() {
    let told = Explored::followed().await;
    let did = &told.stories.hostile.did;
    for path in ["", "?change=aliases", "?change=%3Cscript%3E", "?until=2"] {
        let page = told.page(&format!("/explore/{did}{path}")).await;
        assert!(!page.contains("<script") && !page.contains("<img"));
        assert!(!page.contains(OVERRIDE) && !page.contains('\u{202e}') && !page.contains('\0'));
        assert!(page.contains("U+202E"));
        for value in page.split("href=\"").skip(1) {
            assert!(value.starts_with(['/', '#']), "a link elsewhere: {}", &value[..40]);
        }
        assert!(page.len() < 400_000, "{} bytes", page.len());
    }
    for list in ["/explore/log", "/explore/refused", "/explore/divergences?kind=%3Cscript%3E%22"] {
        let page = told.page(list).await;
        assert!(!page.contains("<script") && !page.contains(OVERRIDE));
    }
    let page = told.answer("/explore?q=%3Cscript%3Ealert(1)%3C/script%3E%22onfocus=%22x").await;
    assert_eq!(page.status(), 404);
    let page = page.text().await.unwrap();
    assert!(!page.contains("<script") && !page.contains("\"onfocus"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_forbids_everything_from_elsewhere() {
    let told = Explored::followed().await;
    let plain = format!("/explore/{}", told.stories.plain.did);
    for (path, status) in [
        ("/", 200),
        (&*plain, 200),
        ("/explore/did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", 404),
        ("/explore/nonsense", 404),
        ("/explore?q=alice.example.com", 404),
        ("/explore/log", 200),
        ("/explore/refused", 200),
        ("/explore/divergences", 200),
        ("/explore/refused?after=x", 400),
        ("/_style.css", 200),
        ("/_icon.svg", 200),
    ] {
        let answer = told.answer(path).await;
        assert_eq!(answer.status(), status, "{path}");
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{path}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        let text = answer.text().await.unwrap();
        let elsewhere =
            text.replace("http://www.w3.org/2000/svg", "").replace(&told.upstream.url(), "");
        // The others have texts of operations on them.
        let own_texts =
            !["/explore/did", "/explore/log", "/explore/ref"].iter().any(|of| path.starts_with(of));
        if own_texts {
            assert!(!elsewhere.contains("://"), "{path}");
        }
    }
    let found = told.answer(&format!("/explore?q=at://{}/x", told.stories.plain.did)).await;
    assert_eq!(
        (found.status().as_u16(), found.headers()["location"].to_str().unwrap()),
        (303, &*plain)
    );
}

/// A number leads to its operation, a date to what happened since, the address of a profile to its handle.
#[tokio::test(flavor = "multi_thread")]
async fn people_find_what_they_have() {
    let told = Explored::followed().await;
    told.index().await;
    let leads_to = async |text: &str| {
        let found = told.answer(&format!("/explore?q={}", encoded(text))).await;
        assert_eq!(found.status(), 303, "{text}");
        found.headers()["location"].to_str().unwrap().to_owned()
    };
    let log = told.stories.story.log();
    let entry = log.iter().find(|entry| entry.did == told.stories.plain.did).unwrap();
    let page = format!("/explore/{}#{}", entry.did, entry.cid);
    assert_eq!(leads_to(&entry.seq.to_string()).await, page);
    assert_eq!(leads_to(&format!("#{}", entry.seq)).await, page);
    assert_eq!(leads_to("9999999").await, "/explore/log?from=9999999");
    let day = &entry.created_at[..10];
    let since = leads_to(day).await;
    assert_eq!(since, format!("/explore/log?since={day}T00:00:00.000Z"));
    assert!(told.page(&since).await.contains(&entry.did));
    let profile = encoded("https://bsky.app/profile/alice.example.org/post/3kabc");
    assert!(told.page(&format!("/explore?q={profile}")).await.contains(&entry.did));
}

/// The list goes from the newest operations to the first, each once.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_turned_page_by_page() {
    let told = Explored::followed().await;
    let (mut path, mut seen) = ("/explore/log".to_owned(), Vec::new());
    loop {
        let page = told.page(&path).await;
        let rows = page.split("<li><p><a class=\"code\" href=\"/explore/").skip(1);
        seen.extend(rows.map(|row| row.split('"').next().unwrap().to_owned()));
        let Some(at) = page.find("\">Older</a>") else { break };
        path = page[..at].rsplit("href=\"").next().unwrap().to_owned();
    }
    let held = told.replica.store.export_by_sequence(0, 10_000).await.unwrap();
    let mut expected: Vec<String> =
        held.iter().map(|held| format!("{}#{}", held.did, held.cid())).collect();
    expected.sort();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, expected);
}

/// Types a text into the page's search field and sends it.
async fn search(browser: &mut Browser, text: &str) {
    browser.evaluate(&format!("document.querySelector('#q').value = '{text}'")).await;
    click(browser, "form button").await;
}

/// Clicks on what leads to another page.
async fn click(browser: &mut Browser, selector: &str) {
    browser.evaluate(&format!("document.querySelector('{selector}').click()")).await;
    browser.loaded().await;
}

/// A text in a query.
fn encoded(text: &str) -> String {
    byte_serialize(text.as_bytes()).collect()
}

/// Searched, opened, followed, in a browser: nothing is asked for elsewhere, nothing is complained
/// about, nothing is wider than the window. Pictures are left in `CARGO_TARGET_TMPDIR`; with the
/// file of axe-core named by AXE_CORE, its rules are checked too.
#[tokio::test(flavor = "multi_thread")]
async fn a_browser_has_nothing_to_complain_about() {
    let Some(mut browser) = Browser::start().await else {
        skipped("chromium", "there is no chromium here");
        return;
    };
    let told = Explored::followed().await;
    told.index().await;
    let (stories, origin) = (&told.stories, told.replica.url());
    browser.look(1100, false).await;
    browser.open(&format!("{origin}/")).await;
    let heading = "document.querySelector('h1').textContent";
    search(&mut browser, &stories.plain.did).await;
    assert_eq!(browser.evaluate(heading).await, "alice.example.org");
    click(&mut browser, ".filters a:nth-child(2)").await;
    assert_eq!(browser.evaluate("document.querySelectorAll('.entry').length").await, 2);
    search(&mut browser, "alice.example.com").await;
    assert_eq!(browser.evaluate(heading).await, "Who claims it");
    click(&mut browser, ".records a").await;
    assert_eq!(browser.evaluate(heading).await, "alice.example.org");

    let axe = std::env::var("AXE_CORE").ok().map(|file| std::fs::read_to_string(file).unwrap());
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("explorer");
    std::fs::create_dir_all(&pictures).unwrap();
    let explore = |told: &plc_testkit::builder::Told| format!("/explore/{}", told.did);
    for (name, path) in [
        ("home", "/".to_owned()),
        ("plain", explore(&stories.plain)),
        ("recovered", explore(&stories.recovered)),
        ("untombstoned", explore(&stories.untombstoned)),
        ("ended", explore(&stories.ended)),
        ("long", explore(&stories.long)),
        ("hostile", explore(&stories.hostile)),
        ("contested", explore(&stories.contested)),
        ("log", "/explore/log".to_owned()),
        ("refused", "/explore/refused".to_owned()),
        ("divergences", "/explore/divergences".to_owned()),
        ("claimants", "/explore?q=thief.example.net".to_owned()),
        ("claimants-many", format!("/explore?q={}", stories.story.recovery.did_key())),
        ("claimants-hostile", format!("/explore?q={}", encoded(&format!("at://{OVERRIDE}")))),
        ("claimants-script", format!("/explore?q={}", encoded(&format!("at://{SCRIPT}")))),
    ] {
        for (width, dark) in [(1100, false), (360, true), (1100, true), (360, false)] {
            let look = format!("{name} at {width}, dark: {dark}");
            browser.look(width, dark).await;
            browser.open(&format!("{origin}{path}")).await;
            let wide = browser.evaluate("document.documentElement.scrollWidth").await;
            assert!(wide.as_u64().unwrap() <= width.into(), "{look}: {wide} wide");
            assert_ne!(browser.evaluate("document.title").await, "executed", "{look}");
            let shade = if dark { "dark" } else { "light" };
            browser.screenshot(pictures.join(format!("{name}-{width}-{shade}.png"))).await;
            if let Some(axe) = &axe {
                browser.evaluate(&format!("{axe};0")).await;
                let broken = browser
                    .evaluate(
                        "axe.run().then(r => JSON.stringify(r.violations.map(v => \
                         [v.id, v.help, v.nodes.slice(0, 3).map(n => n.html)])))",
                    )
                    .await;
                assert_eq!(broken, "[]", "{look}");
            }
        }
    }
    let (asked, complaints) = browser.noticed();
    assert!(!asked.is_empty());
    assert_eq!(asked.iter().find(|url| !url.starts_with(&origin)), None);
    assert_eq!(complaints, Vec::<String>::new());
}
