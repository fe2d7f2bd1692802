//! What the made-up rows say: titles, slugs, devices and JSON payloads, in several scripts.

use std::fmt::Write;

use rand::RngExt;
use rand::rngs::StdRng;

/// Where people listen, watch and read, with how many of each.
const DEVICES: &[(&str, u32)] = &[
    ("iPhone 15", 20),
    ("iPhone 13 mini", 9),
    ("Samsung Galaxy S24", 14),
    ("Pixel 8a", 8),
    ("web/Chrome", 16),
    ("web/Firefox", 8),
    ("web/Safari", 7),
    ("iPad Air", 5),
    ("Apple TV 4K", 3),
    ("Sonos Era 100", 2),
    ("Küchenradio \"Größe S\"", 2),
    ("小米 14 Ultra", 2),
    ("Яндекс Станция Мини", 2),
    ("テレビ (リビング)", 1),
    ("📻 DIY-Empfänger", 1),
];

/// Kind of content: how many of 100, shortest and longest length in seconds.
const KINDS: &[(Option<&str>, u32, (i32, i32))] = &[
    (Some("podcast"), 45, (300, 7_200)),
    (Some("video"), 30, (30, 5_400)),
    (Some("newsletter"), 23, (40, 1_200)),
    (None, 2, (30, 3_600)),
];

const OPENINGS: &[&str] = &[
    "The Quiet",
    "Inside the",
    "A Short History of the",
    "What Nobody Says About",
    "Ten Minutes of",
    "Beyond",
    "Das Geheimnis:",
    "L’été de",
    "El año de",
    "夜の",
    "Как устроен",
    "شرح",
    "Ask Me Anything:",
    "Why We Love",
    "Don't Panic,",
    "R&D <live>:",
    "“Best of”",
    "Åse møter",
];

const SUBJECTS: &[&str] = &[
    "Tide Pools",
    "Interest Rates",
    "Sourdough",
    "Night Trains",
    "Rust & Iron",
    "Größenwahn",
    "la Forêt",
    "los Océanos",
    "東京",
    "космос",
    "الصحراء",
    "Beethoven's Ninth",
    "100% Cotton",
    "C:\\Users",
    "Bees 🐝",
    "Coffee ☕️",
    "Families 👩‍👩‍👧",
    "Naïve Café",
    "Deep Sea Cables",
    "Chess",
    "Old Maps",
    "the Marathon",
];

/// A title such as "Inside the Night Trains, No. 17".
pub fn title(rng: &mut StdRng) -> String {
    let mut title = format!("{} {}", pick(rng, OPENINGS), pick(rng, SUBJECTS));
    if rng.random_ratio(1, 2) {
        let _ = write!(title, ", No. {}", rng.random_range(1..400));
    }
    title
}

/// A slug that no other content has: `unique` is in it.
pub fn slug(title: &str, unique: u32) -> String {
    let words: Vec<String> = title
        .split(|character: char| !character.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    format!("{}-{unique:08x}", words.join("-"))
}

/// A content type and a length in seconds; either may be unknown.
pub fn kind_and_length(rng: &mut StdRng) -> (Option<&'static str>, Option<i32>) {
    let mut ticket = rng.random_range(0..100);
    let (kind, _, (shortest, longest)) = KINDS
        .iter()
        .find(|(_, share, _)| below(&mut ticket, *share))
        .copied()
        .unwrap_or((None, 0, (30, 3_600)));
    let length_seconds = rng.random_range(f64::from(shortest).ln()..=f64::from(longest).ln()).exp() as i32;
    (kind, rng.random_ratio(95, 100).then_some(length_seconds))
}

/// A device; sometimes not told.
pub fn device(rng: &mut StdRng) -> Option<&'static str> {
    if rng.random_ratio(3, 100) {
        return None;
    }
    let mut ticket = rng.random_range(0..DEVICES.iter().map(|(_, share)| share).sum());
    DEVICES.iter().find(|(_, share)| below(&mut ticket, *share)).map(|(device, _)| *device)
}

/// JSON as an app sends it: about 130 bytes as a rule, some nested, some with escapes, few of kilobytes.
pub fn payload(rng: &mut StdRng, position_ms: i64) -> Option<String> {
    let roll = rng.random_range(0..1_000);
    if roll < 40 {
        return None;
    }
    let mut json = String::with_capacity(160);
    let _ = write!(
        json,
        r#"{{"session":"{:016x}","app":"{}.{}.{}","network":"{}","position_ms":{position_ms},"speed":{}"#,
        rng.random::<u64>(),
        rng.random_range(3..6),
        rng.random_range(0..20),
        rng.random_range(0..9),
        pick(rng, &["wifi", "4g", "5g", "offline", "ethernet"]),
        pick(rng, &["0.8", "1", "1", "1.25", "1.5", "2"]),
    );
    match roll {
        40..700 => {
            let _ = write!(json, r#","quality":"{}""#, pick(rng, &["low", "720p", "1080p", "lossless"]));
        }
        700..900 => nested(rng, &mut json),
        900..990 => escapes(rng, &mut json),
        _ => large(rng, &mut json),
    }
    json.push('}');
    Some(json)
}

fn nested(rng: &mut StdRng, json: &mut String) {
    let _ = write!(
        json,
        r#","referrer":{{"kind":"{}","campaign":{{"id":{},"tags":["a","b{}"],"paid":{}}}}},"ab":null"#,
        pick(rng, &["search", "push", "mail", "share"]),
        rng.random_range(1..5_000),
        rng.random_range(0..10),
        rng.random_bool(0.5),
    );
}

fn escapes(rng: &mut StdRng, json: &mut String) {
    let note = pick(
        rng,
        &[
            r#"she said \"encore\" \\ twice"#,
            r"line one\nline two\ttabbed",
            r"caf\u00e9 \ud83d\udc1d <b>&amp;</b>",
            "schon gehört? 素晴らしい 👩‍👩‍👧",
            r"C:\\temp\\новый.txt \u2028 / \/",
        ],
    );
    let _ = write!(json, r#","note":"{note}","":0,"big":{}"#, rng.random::<u64>());
}

fn large(rng: &mut StdRng, json: &mut String) {
    json.push_str(r#","markers":["#);
    for marker in 0..rng.random_range(20..200) {
        let comma = if marker == 0 { "" } else { "," };
        let _ = write!(json, r#"{comma}{{"at":{},"ad":"{:08x}"}}"#, marker * 1_337, rng.random::<u32>());
    }
    json.push(']');
}

fn pick<'a>(rng: &mut StdRng, choices: &[&'a str]) -> &'a str {
    choices.get(rng.random_range(0..choices.len())).copied().unwrap_or_default()
}

/// Whether the ticket falls in this share; else it is moved to the next.
fn below(ticket: &mut u32, share: u32) -> bool {
    let hit = *ticket < share;
    *ticket = ticket.saturating_sub(share);
    hit
}
