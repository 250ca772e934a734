//! The identities whose pages are looked at.

use std::time::Duration;

use plc_testkit::builder::{Story, Told};

use crate::replica::now;

/// Texts that want to be something else.
pub const SCRIPT: &str = "<script>document.title='executed'</script>";
pub const OVERRIDE: &str = "alice\u{202e}moc.elpmaxe\u{202c}.example.com";

pub struct Stories {
    pub story: Story,
    pub plain: Told,
    pub recovered: Told,
    pub untombstoned: Told,
    pub ended: Told,
    pub long: Told,
    pub hostile: Told,
    /// The last operation was signed by its second key an hour ago.
    pub contested: Told,
    /// The same, and half an hour ago its first key has built on that.
    pub built_on: Told,
}

impl Stories {
    pub fn told() -> Stories {
        let mut story = Story::seeded(50);
        let plain = plain(&mut story);
        let recovered = recovered(&mut story);
        let untombstoned = untombstoned(&mut story);
        let ended = story.create_legacy().handle("gone.example.com").accepted();
        story.tombstone(&ended).accepted();
        let long = long(&mut story);
        let hostile = hostile(&mut story);
        let contested = story.create().handle("carol.example.com").accepted();
        let an_hour_ago = (now() - Duration::from_secs(3600)).to_string();
        story.update(&contested).handle("carol.example.net").at(&an_hour_ago).accepted();
        let two_hours_ago = (now() - Duration::from_secs(7200)).to_string();
        let built_on = story.create().handle("erin.example.com").at(&two_hours_ago).accepted();
        story.update(&built_on).handle("erin.example.net").at(&an_hour_ago).accepted();
        let half_an_hour_ago = (now() - Duration::from_secs(1800)).to_string();
        let recovery = story.recovery.clone();
        let by_the_first = story.update(&built_on).signed_by(&recovery);
        by_the_first.handle("erin.example.org").at(&half_an_hour_ago).accepted();
        Stories { story, plain, recovered, untombstoned, ended, long, hostile, contested, built_on }
    }
}

fn plain(story: &mut Story) -> Told {
    let alice = story.create().handle("alice.example.com").accepted();
    story.update(&alice).handle("alice.example.org").accepted();
    story.update(&alice).host("https://pds.example.org").accepted();
    alice
}

/// Stolen three times and taken back each time; the second time from two keys down.
fn recovered(story: &mut Story) -> Told {
    let keys = [story.k256(), story.p256(), story.k256()];
    let thief = story.k256();
    let dora = story.create().handle("dora.example.com").rotation_keys(&keys).signed_by(&keys[0]);
    let dora = dora.accepted();
    for theft in 0..3 {
        let held = story.head(&dora);
        let signer = if theft == 1 { &keys[1] } else { &keys[2] };
        let stolen = story.after(&held).rotation_keys([&thief]).signed_by(signer).accepted();
        story.update(&stolen).handle("thief.example.net").signed_by(&thief).accepted();
        story.update(&stolen).host("https://thief.example.net").signed_by(&thief).accepted();
        story.update(&stolen).forged_signature().refused("signature-invalid");
        let back =
            story.after(&held).signed_by(&keys[0]).handle(&format!("dora{theft}.example.com"));
        back.accepted();
    }
    dora
}

fn untombstoned(story: &mut Story) -> Told {
    let recovery = story.recovery.clone();
    let emil = story.create().handle("emil.example.com").accepted();
    let end = story.tombstone(&emil).accepted();
    let day = Duration::from_secs(24 * 3600);
    story.after(&emil).signed_by(&recovery).later_than(&end, day).accepted();
    emil
}

fn long(story: &mut Story) -> Told {
    let fred = story.create().handle("fred.example.com").accepted();
    for number in 1..60 {
        let update = story.update(&fred);
        match number % 4 {
            0 => update.host(&format!("https://pds{number}.example.com")),
            3 => update.service("labeler", "AtprotoLabeler", &format!("https://l{number}.example")),
            _ => update.handle(&format!("fred{number}.example.com")),
        }
        .accepted();
    }
    fred
}

fn hostile(story: &mut Story) -> Told {
    let ten_kilobytes = "long ".repeat(2_000);
    let unbroken = "x".repeat(10_000);
    let mallory = story.create().handle(SCRIPT).accepted();
    story
        .update(&mallory)
        .also_known_as([
            &*format!("at://{OVERRIDE}"),
            "javascript:alert(1)",
            "\" onmouseover=\"alert(1)",
            "</title><img src=x onerror=alert(1)>",
            "e\u{301}\u{302}\u{303}\u{304}\u{305}\u{306}\u{307}\u{308}\u{309}\u{30a}vil",
            "مرحبا بالعالم",
            "nul\0newline\nzero\u{200b}\u{200b}\u{200b}width",
            "",
            &ten_kilobytes,
            &unbroken,
        ])
        .service(SCRIPT, SCRIPT, "javascript:alert(1)")
        .host(&format!("https://{unbroken}.example"))
        .verification_method(OVERRIDE, "no key at all")
        .accepted();
    let many: Vec<String> = (0..200).map(|number| format!("at://many{number}.example")).collect();
    story.update(&mallory).also_known_as(many.iter().map(String::as_str)).accepted();
    story.update(&mallory).handle(OVERRIDE).accepted();
    story.update(&mallory).field(SCRIPT, SCRIPT.into()).refused("malformed");
    mallory
}
