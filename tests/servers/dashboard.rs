//! The dashboard in a real browser, before a real walcast on real servers.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::browser::{ARROW_RIGHT, Browser, SPACE, TAB};
use crate::support::running::Running;
use crate::support::wire::{Weather, Wire};
use crate::support::world::World;
use crate::support::{env, wait_until};
use serde_json::Value;
use walcast::source::sql;

const RATE_PER_MINUTE: u32 = 6_000;
/// How soon a sink that is gone must be seen on the page.
const OUTAGE_WITHIN: Duration = Duration::from_secs(2);

/// A browser on the page of this walcast, whose figures have come.
async fn page_of(running: &Running) -> Browser {
    page_at(&running.address().await).await
}

async fn page_at(address: &str) -> Browser {
    let browser = Browser::open(address).await;
    browser.wait("document.body.dataset.link === 'live'").await;
    browser
}

/// Waits until the text of an element is another one.
async fn changes(browser: &Browser, selector: &str) {
    let before = browser.text(selector).await;
    wait_until(&format!("{selector} changes"), async || browser.text(selector).await != before).await;
}

fn level(node: &str, level: &str) -> String {
    format!("document.querySelector('[data-node={node}]')?.dataset.level === '{level}'")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_change_and_a_sink_that_is_gone_shows_within_two_seconds() {
    let world = World::initialised().await;
    let redis = Wire::to(env("REDIS_PORT", "26379").parse().unwrap()).await;
    let through = world.with("REDIS_PORT", &redis.port.to_string());
    let running = through.start().await;
    let _load = world.generate(RATE_PER_MINUTE);
    let browser = page_of(&running).await;
    for node in ["postgres", "decode", "join", "content", "kafka", "redis", "bigquery"] {
        browser.wait(&level(node, "ok")).await;
    }
    browser.wait("document.querySelectorAll('#objectives tbody tr').length === 4").await;
    browser.wait("document.querySelectorAll('.chart canvas').length === 6").await;
    for figure in
        ["#events-total", "#sink-table tbody tr:nth-child(2) td:nth-child(4)", "#ladder tbody tr td"]
    {
        changes(&browser, figure).await;
    }
    assert_eq!(browser.complaints().await, Vec::<String>::new());

    redis.set(Weather::Cut);
    let cut = Instant::now();
    browser.wait(&level("redis", "fail")).await;
    let seen_after = cut.elapsed();
    assert!(seen_after <= OUTAGE_WITHIN, "it showed after {seen_after:?}");
    let problem = browser.text("#problem").await;
    assert!(problem.contains("redis takes no rows"), "{problem}");
    assert!(browser.text("#errors").await.contains("redis"));
    redis.set(Weather::Fair);
    browser.wait(&level("redis", "ok")).await;
    browser.wait("document.querySelector('#errors').textContent.includes('last error')").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_is_cut_off_says_so_and_comes_back_by_itself() {
    let world = World::initialised().await;
    let running = world.start().await;
    let _load = world.generate(RATE_PER_MINUTE);
    let address = running.address().await;
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    let wire = Wire::to(port).await;
    let browser = page_at(&format!("http://127.0.0.1:{}", wire.port)).await;
    // whether the end of the connection is told or not
    for weather in [Weather::Cut, Weather::Silent, Weather::Reset] {
        changes(&browser, "#events-total").await;
        wire.set(weather);
        browser.wait("document.body.dataset.link === 'lost'").await;
        let told = browser.text("#link").await;
        assert!(told.starts_with("not connected since ") && told.ends_with("trying again"), "{told}");
        wire.set(Weather::Fair);
        browser.wait("document.body.dataset.link === 'live'").await;
    }
    changes(&browser, "#events-total").await;
    // what was missed is in the charts
    let widest = "const { history } = await import('/page/history.js');
        return Math.max(...history.at_ms.slice(1).map((at, place) => at - history.at_ms[place]))";
    wait_until("no second is missing", async || {
        browser.eval(widest, ()).await.as_f64().is_some_and(|gap| gap < 2_500.0)
    })
    .await;
    let others: Vec<String> =
        browser.complaints().await.into_iter().filter(|complaint| !complaint.contains("net::ERR_")).collect();
    assert_eq!(others, Vec::<String>::new(), "all but what a lost connection is");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_from_the_data_is_only_text() {
    const EVIL: &str = "<img src=x onerror=window.broken=1><script>window.broken=2</script>";
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(30).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    client.execute("UPDATE content SET title = $1 WHERE slug = 'slug-1'", &[&EVIL]).await.unwrap();
    let browser = page_of(&running).await;
    browser.wait("document.querySelectorAll('#board tbody tr').length === 3").await;
    wait_until("the title is on the board", async || browser.text("#board tbody").await.contains(EVIL)).await;
    // by keyboard to another window, which has the same
    browser.eval("document.querySelector('[name=window]').focus()", ()).await;
    browser.press(ARROW_RIGHT).await;
    browser.wait("document.querySelector('[name=window][value=\"1h\"]').checked").await;
    wait_until("it is on the next board", async || browser.text("#board tbody").await.contains(EVIL)).await;
    assert_eq!(browser.text("#board tbody tr td:nth-child(3)").await, "podcast");
    let made = "return [document.images.length, window.broken ?? null, document.querySelectorAll('main script').length]";
    assert_eq!(browser.eval(made, ()).await, serde_json::json!([0, null, 0]));
    assert_eq!(browser.complaints().await, Vec::<String>::new());

    // were it not so, the policy would stop it, and this test would see that
    let put = "document.querySelector('#board-note').innerHTML = arguments[0]; document.body.setAttribute('style', 'top: 1px')";
    browser.eval(put, "<img src=/page/icon.svg onload=window.broken=3>").await;
    wait_until("the policy is kept", async || {
        browser.complaints().await.iter().any(|complaint| complaint.contains("Content Security Policy"))
    })
    .await;
    assert_eq!(browser.eval("return window.broken ?? null", ()).await, Value::Null);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_read_and_used_at_every_width_by_keyboard_and_in_the_dark() {
    let world = World::initialised().await;
    let running = world.start().await;
    let _load = world.generate(RATE_PER_MINUTE);
    let browser = page_of(&running).await;
    browser.wait("document.querySelectorAll('#board tbody tr').length >= 10").await;
    browser.wait("document.querySelectorAll('#checks li').length >= 10").await;
    Pictures::new("dashboard").take(&browser, "page").await;
    every_control_is_reached_by_keyboard(&browser).await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    running.stop().await;
}

/// The drawing shows the branch: a sink that has fallen behind hangs on a slot of its own until it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_has_fallen_behind_is_drawn_on_a_slot_of_its_own() {
    let world = World::initialised().await;
    let redis = Wire::to(world.redis_port()).await;
    let world = world
        .with("BREAKER_PROBE_SECONDS", "2")
        // the emulator takes its time for so many rows
        .with("PIPELINE_SINKS", "kafka,redis")
        .with("REDIS_PORT", &redis.port.to_string());
    let running = world.start().await;
    world.insert_events(100).await;
    wait_until("Redis counts all", async || world.redis_plays().await >= 100).await;
    let browser = page_of(&running).await;
    browser.look(1440, false).await;
    browser.wait(&level("redis", "ok")).await;
    browser.wait("document.getElementById('branch').hidden").await;
    let pictures = Pictures::new("lanes");

    redis.set(Weather::Cut);
    for _ in 0..40 {
        world.insert_events(500).await;
    }
    let lane = |word: &str| {
        format!("document.querySelector('[data-lane=redis] .lane-way .word')?.textContent === '{word}'")
    };
    browser.wait(&lane("parked")).await;
    browser.wait("document.querySelector('[data-lane=redis]').textContent.includes('of WAL kept')").await;
    browser
        .wait("document.querySelector('[data-lane=redis] [data-node=redis]')?.dataset.level === 'fail'")
        .await;
    let fed = "return ['kafka', 'redis'].map((name) => Boolean(document.querySelector(`#targets [data-node=${name}]`)))";
    assert_eq!(browser.eval(fed, ()).await, serde_json::json!([true, false]));
    browser.wait("document.querySelector('#problem').textContent.includes('a slot of its own keeps')").await;
    let row = browser.text("#sink-table tbody tr:nth-child(3)").await;
    assert!(row.contains("breaker open") && row.contains("own slot parked"), "{row}");
    assert!(browser.text("#holder").await.contains("For redis alone it keeps"));
    pictures.take(&browser, "parked").await;

    redis.set(Weather::Slow(3_000));
    // from one look to the next it may have caught up
    let lag = "document.querySelector('[data-lane=redis] .node-lag')?.textContent";
    browser.wait(&format!("{} && (window.firstLag = {lag})", lane("catching up"))).await;
    browser.wait(&format!("{lag} !== window.firstLag")).await;
    pictures.take(&browser, "catching-up").await;

    redis.set(Weather::Fair);
    wait_until("Redis counts all", async || world.redis_plays().await >= 20_100).await;
    browser.wait("document.getElementById('branch').hidden").await;
    browser.wait("document.querySelector('#targets [data-node=redis]')?.dataset.level === 'ok'").await;
    browser.wait("document.querySelector('#problem').textContent.includes('All is well')").await;
    pictures.take(&browser, "well").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    running.stop().await;
}

/// Where a test puts what the page looks like, for whoever wants to see it.
struct Pictures(std::path::PathBuf);

impl Pictures {
    fn new(name: &str) -> Pictures {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        println!("pictures: {}", folder.display());
        Pictures(folder)
    }

    /// At every width, light and dark: nothing is wider than the window, and all text can be read.
    async fn take(&self, browser: &Browser, name: &str) {
        for width in [390, 820, 1440] {
            for dark in [false, true] {
                let name = format!("{name}-{width}-{}", if dark { "dark" } else { "light" });
                browser.look(width, dark).await;
                changes(browser, "#link").await;
                browser.picture(&self.0.join(format!("{name}.png"))).await;
                let overflow =
                    "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
                assert_eq!(browser.eval(overflow, ()).await, 0, "{name}: wider than the window");
                let faint = browser.eval(FAINT_TEXTS, ()).await;
                assert_eq!(faint, serde_json::json!([]), "{name}: too little contrast");
            }
        }
    }
}

async fn every_control_is_reached_by_keyboard(browser: &Browser) {
    let mut reached = Vec::new();
    browser.eval("document.activeElement.blur()", ()).await;
    for _ in 0..30 {
        browser.press(TAB).await;
        let focus = "const it = document.activeElement; const shown = it.type === 'radio' ? it.nextElementSibling : it;
            return [it.getAttribute('href') ?? (it.id || it.name || it.className), getComputedStyle(shown).outlineStyle]";
        let focused = browser.eval(focus, ()).await;
        let name = focused[0].as_str().unwrap_or_default().to_owned();
        if reached.contains(&name) || name.is_empty() {
            break;
        }
        assert_ne!(focused[1], "none", "{name} has the focus and does not show it");
        reached.push(name);
    }
    let expected = [
        "#main",
        "#pipeline",
        "#source",
        "#sinks",
        "#boards",
        "#letters",
        "#checks",
        "span",
        "window",
        "check-again",
    ];
    let in_order: Vec<&str> =
        reached.iter().map(String::as_str).filter(|name| expected.contains(name)).collect();
    assert_eq!(in_order, expected, "of {reached:?}");
    let looked = browser.text("#checks-note").await;
    browser.eval("document.getElementById('check-again').focus()", ()).await;
    browser.press(SPACE).await;
    wait_until("the checks are looked at", async || browser.text("#checks-note").await != looked).await;
}

/// Texts with less contrast to what is behind them than 4.5 to 1.
const FAINT_TEXTS: &str = r"
const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return { r, g, b, a }; };
const over = (front, back) => Object.fromEntries(['r', 'g', 'b'].map((c) => [c, front[c] * front.a + back[c] * (1 - front.a)]));
const light = ({ r, g, b }) => { const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z; };
const behind = (element) => { const layers = [];
  for (let e = element; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor));
  return layers.reduce((back, front) => ({ ...over(front, back) }), { r: 255, g: 255, b: 255 }); };
const faint = [];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  if (texts.currentNode.data.trim() === '' || !element.checkVisibility() || element.closest('.hidden, .skip, noscript, button:disabled')) continue;
  const back = behind(element);
  const [a, b] = [light(over(parse(getComputedStyle(element).color), back)), light(back)];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < 4.5) faint.push(`${texts.currentNode.data.trim()}: ${contrast.toFixed(1)}`);
}
return faint;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_rows_are_counted_and_their_values_shown_to_the_holder_of_the_token() {
    const EVIL: &str = "<img src=x onerror=window.broken=1>";
    let world = World::initialised().await.with("PIPELINE_SINKS", "redis");
    let client = sql::connect(&world.postgres).await.unwrap();
    let bad = "INSERT INTO engagement_events (event_type, event_ts, duration_ms, device) VALUES ('play', now(), -1, $1)";
    let open = world.start().await;
    client.execute(bad, &[&EVIL]).await.unwrap();
    let browser = page_of(&open).await;
    browser.wait("document.querySelectorAll('#letter-list > li').length === 1").await;
    assert_eq!(browser.text("#letter-table tbody").await, "allnegative_duration10");
    let shape = browser.text("#letter-list").await;
    assert!(shape.contains("duration_ms") && shape.contains("a negative number"), "{shape}");
    browser.eval("document.querySelector('#letter-list details').open = true", ()).await;
    browser.eval("document.querySelector('#letter-list button').click()", ()).await;
    wait_until("values are refused where anybody may ask", async || {
        browser.text("#letter-list pre").await.contains("set web.token")
    })
    .await;
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard");
    std::fs::create_dir_all(&pictures).unwrap();
    browser.look(1440, false).await;
    browser.picture(&pictures.join("letters.png")).await;
    browser.look(390, true).await;
    browser.picture(&pictures.join("letters-390-dark.png")).await;
    assert_eq!(browser.eval(FAINT_TEXTS, ()).await, serde_json::json!([]), "too little contrast");
    drop(browser);
    open.stop().await;

    let running = world.with("WEB_TOKEN", "0123456789abcdef").start().await;
    let address = running.address().await;
    let browser = Browser::open(&address.replacen("http://", "http://walcast:0123456789abcdef@", 1)).await;
    // as after typing the password: nothing is fetched from an address that has one
    browser.eval("location.href = arguments[0]", address).await;
    browser.wait("document.querySelectorAll('#letter-list > li').length === 1").await;
    browser.eval("document.querySelector('#letter-list details').open = true", ()).await;
    browser.eval("document.querySelector('#letter-list button').click()", ()).await;
    wait_until("the holder sees the row", async || browser.text("#letter-list pre").await.contains("base64"))
        .await;
    let made = "return [document.images.length, window.broken ?? null]";
    assert_eq!(browser.eval(made, ()).await, serde_json::json!([0, null]));
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    running.stop().await;
}
