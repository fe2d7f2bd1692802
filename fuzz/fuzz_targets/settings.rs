//! A settings file, and its text as `postgres.uri`: what is taken is shown, with no secret in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walcast::config::Loaded;

fuzz_target!(|text: &str| {
    let path = std::env::temp_dir().join(format!("walcast-fuzz-{}.toml", std::process::id()));
    std::fs::write(&path, text).expect("a temporary file");
    if let Ok(loaded) = Loaded::load(Some(&path), []) {
        let _ = loaded.show();
    }
    if let Ok(settings) = walcast::source::uri::settings(text) {
        assert!(settings.len() < 100);
    }
    let environment = [("POSTGRES_URI".to_owned(), text.to_owned())];
    let _ = Loaded::load(None, environment);
});
