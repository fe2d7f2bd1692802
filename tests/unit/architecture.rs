//! House rules that a compiler does not keep: the direction of imports, and the length of functions.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use walcast::error::Code;

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => files.extend(sources(&entry)),
            false if entry.extension().is_some_and(|extension| extension == "rs") => files.push(entry),
            false => {}
        }
    }
    files
}

fn module_of(file: &Path, root: &Path) -> String {
    let first = file.strip_prefix(root).unwrap().components().next().unwrap();
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// The paths below `crate::` that a source file names, without those in its tests: those drive whatever they need.
fn used(text: &str) -> Vec<Vec<String>> {
    let code = without_tests(text);
    let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let rest = code.split("crate::").skip(1);
    rest.flat_map(names).filter(|path| !path.is_empty()).collect()
}

/// Each path that begins here: one, or one for each name in braces.
fn names(rest: &str) -> Vec<Vec<String>> {
    let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if let Some(braces) = rest.strip_prefix('{') {
        let inside = braces.split('}').next().unwrap_or_default();
        return inside.split(',').map(|one| one.trim().split("::").map(str::to_owned).collect()).collect();
    }
    if word.is_empty() {
        return Vec::new();
    }
    match rest[word.len()..].strip_prefix("::") {
        None => vec![vec![word]],
        Some(below) => {
            let below = names(below);
            let below = if below.is_empty() { vec![Vec::new()] } else { below };
            below.into_iter().map(|path| std::iter::once(word.clone()).chain(path).collect()).collect()
        }
    }
}

/// The file without the modules and items that only tests have.
fn without_tests(text: &str) -> String {
    let (mut kept, mut lines) = (String::new(), text.lines());
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        let indent = &line[..line.len() - line.trim_start().len()];
        let mut first = true;
        for line in lines.by_ref() {
            let is_item = std::mem::take(&mut first) && line.ends_with(';');
            if is_item || line == format!("{indent}}}") {
                break;
            }
        }
    }
    kept
}

/// The modules in the order of `lib.rs`.
fn order(root: &Path) -> BTreeMap<String, usize> {
    let lib = fs::read_to_string(root.join("lib.rs")).unwrap();
    let modules = lib.lines().filter_map(|line| {
        line.strip_prefix("pub mod ").or(line.strip_prefix("mod "))?.strip_suffix(';').map(str::to_owned)
    });
    modules.enumerate().map(|(place, name)| (name, place)).collect()
}

#[test]
fn modules_use_only_what_stands_above_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let order = order(&root);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in sources(&root) {
        let module = module_of(&file, &root);
        let Some(place) = order.get(&module) else { continue };
        for path in used(&fs::read_to_string(&file).unwrap()) {
            let Some(name) = path.first() else { continue };
            seen += 1;
            if order.get(name).is_some_and(|used| used > place) {
                wrong.push(format!("{} uses {name}", file.display()));
            }
        }
    }
    assert!(seen > 500, "the files were not read: {seen} uses");
    assert!(wrong.is_empty(), "against the flow:\n{}", wrong.join("\n"));
}

/// What all sinks share lies beside them in `sink`; the list of them is `sinks`.
#[test]
fn sinks_know_no_other_sink() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sink");
    let shared =
        ["mod", "queue", "read_back", "retry", "breaker", "anew", "driver", "erasure", "record", "recount"];
    let is_sink = |name: &str| !shared.contains(&name);
    let sinks: Vec<String> =
        sources(&root).iter().map(|file| module_of(file, &root)).filter(|name| is_sink(name)).collect();
    let mut wrong = Vec::new();
    for file in sources(&root) {
        let own = module_of(&file, &root);
        for path in used(&fs::read_to_string(&file).unwrap()) {
            let [top, sink, ..] = path.as_slice() else { continue };
            if top == "sink" && sinks.contains(sink) && *sink != own {
                wrong.push(format!("{} uses {sink}", file.display()));
            }
        }
    }
    assert!(sinks.len() > 20, "the sinks' files were not found: {sinks:?}");
    assert!(wrong.is_empty(), "a sink knows another:\n{}", wrong.join("\n"));
}

/// The commands are called after sinks; all else takes sinks from the list, whatever they are.
#[test]
fn only_the_list_knows_sinks_by_name() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let allowed = ["sink", "sinks.rs", "config.rs", "main.rs"];
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for file in sources(&root) {
        let name = file.strip_prefix(&root).unwrap();
        if allowed.iter().any(|allowed| name.starts_with(allowed)) {
            continue;
        }
        for path in used(&fs::read_to_string(&file).unwrap()) {
            let [top, sink, ..] = path.as_slice() else { continue };
            seen += usize::from(top == "sink");
            if top == "sink" && ["kafka", "redis", "bigquery", "http", "null"].contains(&sink.as_str()) {
                wrong.push(format!("{} uses {sink}", name.display()));
            }
        }
    }
    assert!(seen > 10, "the files were not read: {seen} uses");
    assert!(wrong.is_empty(), "a sink is known by name:\n{}", wrong.join("\n"));
}

/// What takes sinks from the list, whatever they are.
const KNOWS_NO_SINK: [&str; 8] =
    ["web", "ops", "resume.rs", "streaming", "pipeline.rs", "lanes.rs", "backfill", "sink/driver.rs"];

/// The sinks that a source file has by their names, as texts.
fn named(text: &str) -> Vec<&'static str> {
    let code = without_tests(text);
    let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let sinks = ["kafka", "redis", "bigquery", "http", "null"];
    sinks.into_iter().filter(|sink| code.contains(&format!("\"{sink}\""))).collect()
}

#[test]
fn no_sink_is_told_by_the_text_of_its_name() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for file in sources(&root) {
        let name = file.strip_prefix(&root).unwrap();
        if !KNOWS_NO_SINK.iter().any(|place| name.starts_with(place)) {
            continue;
        }
        seen += 1;
        let text = fs::read_to_string(&file).unwrap();
        wrong.extend(named(&text).iter().map(|sink| format!("{} names {sink}", name.display())));
    }
    assert!(seen > 20, "the files were not read: {seen}");
    assert!(wrong.is_empty(), "a sink is told by its name:\n{}", wrong.join("\n"));
}

#[test]
fn a_sinks_name_is_found_in_code_and_not_in_tests_or_comments() {
    let code = "if sink.name() == \"redis\" {}\nlet all = [\"kafka\",\"null\"];\n";
    assert_eq!(named(code), ["kafka", "redis", "null"]);
    let elsewhere = "// as \"redis\" does\nlet hint = \"walcast rebuild redis\";\n#[cfg(test)]\nmod tests {\n    const A: &str = \"kafka\";\n}\n";
    assert!(named(elsewhere).is_empty());
}

#[test]
fn the_reader_of_imports_sees_what_stands_behind_tests_too() {
    let text = "use crate::a::{b, c::d};\n#[cfg(test)]\nmod tests {\n    use crate::hidden;\n}\n#[cfg(test)]\nmod x;\nfn f() { crate::e::g() }\n";
    let paths: Vec<String> = used(text).iter().map(|path| path.join("::")).collect();
    assert_eq!(paths, ["a::b", "a::c::d", "e::g"]);
}

#[test]
fn functions_stay_short() {
    const LINES_MAX: usize = 80;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut long = Vec::new();
    for file in sources(&root) {
        let text = fs::read_to_string(&file).unwrap();
        let mut open: Option<(usize, String, String)> = None;
        for (number, line) in text.lines().enumerate() {
            let indent = &line[..line.len() - line.trim_start().len()];
            match &open {
                Some((start, end, name)) if line == end => {
                    if number - start > LINES_MAX {
                        long.push(format!(
                            "{}:{} {name}: {} lines",
                            file.display(),
                            start + 1,
                            number - start
                        ));
                    }
                    open = None;
                }
                None if line.contains("fn ") && line.trim_end().ends_with(['{', '(']) => {
                    open = Some((number, format!("{indent}}}"), line.trim().to_owned()));
                }
                _ => {}
            }
        }
    }
    assert!(long.is_empty(), "over {LINES_MAX} lines:\n{}", long.join("\n"));
}

/// What holds the words of an error, ours or a server's.
const WORDS: [&str; 12] = [
    "to_string()",
    "chain()",
    "advice()",
    "message",
    "message()",
    "detail",
    "detail()",
    "details()",
    "hint",
    "description",
    "description()",
    "reason_phrase()",
];

/// How one might decide by them.
const COMPARED: [&str; 11] = [
    ".contains(",
    ".starts_with(",
    ".ends_with(",
    ".strip_prefix(",
    ".find(",
    ".matches(",
    ".eq_ignore_ascii_case(",
    ".to_lowercase(",
    ".as_str()==",
    "==",
    "!=",
];

/// The text without tests and comments, on one line without blanks.
fn squeezed(text: &str) -> String {
    let text = without_tests(text);
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(str::chars).filter(|c| !c.is_whitespace()).collect()
}

/// Comparisons of an error's words in a source file.
fn by_words(text: &str) -> Vec<String> {
    let text = squeezed(text);
    let mut found = Vec::new();
    for words in WORDS {
        for (at, _) in text.match_indices(words) {
            // `message` in `commit_message` or `Message` is another word
            let before = text[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let rest = &text[at + words.len()..];
            let rest = rest.strip_prefix(".as_deref()").unwrap_or(rest);
            found.extend(
                COMPARED.iter().filter(|how| rest.starts_with(**how)).map(|how| format!("{words}{how}")),
            );
        }
    }
    found
}

/// A server may speak any language, and our own words are to be free to change: what an error means is told by its kind,
/// its code, and what was asked.
#[test]
fn nothing_is_decided_by_the_words_of_an_error() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for file in sources(&root) {
        let name = file.strip_prefix(&root).unwrap().display().to_string();
        let found = by_words(&fs::read_to_string(&file).unwrap());
        wrong.extend(found.iter().map(|found| format!("{name}: {found}")));
    }
    assert!(wrong.is_empty(), "decided by words:\n{}", wrong.join("\n"));
}

#[test]
fn a_decision_by_words_is_found_wherever_it_stands() {
    for line in [
        "if error.to_string().contains(\"x\") {}",
        "if error\n    .to_string()\n    .starts_with(\"x\") {}",
        "if error.advice() == \"x\" {}",
        "self.message.contains(row.says)",
        "refusal.detail.as_deref() == Some(\"x\")",
    ] {
        let text = format!("#[cfg(test)]\nmod tests {{\n}}\nfn f() {{\n    {line}\n}}\n");
        assert_eq!(by_words(&text).len(), 1, "{line}");
        let tested = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n    {line}\n}}\n");
        assert!(by_words(&tested).is_empty(), "{line}");
    }
    assert!(by_words("let x = commit_message == 3; text.contains(\"x\")").is_empty());
}

/// Each code of the table is given somewhere, and provoked from outside by some test: an explanation of what cannot
/// happen, or of what nobody has seen happen, is of no use. Tests beside the code do not count: those make errors, and
/// do not meet them.
#[test]
fn every_code_is_given_by_the_code_and_provoked_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = root.join("src/error/code.rs");
    let all = |folder: &str| sources(&root.join(folder)).into_iter().filter(|file| *file != table);
    let read = |file: PathBuf| fs::read_to_string(file).unwrap();
    let given: String = all("src").map(|file| without_tests(&read(file))).collect();
    let tests: String = all("tests").map(read).collect();
    let names = |text: &str, name: &str| {
        text.match_indices(name).any(|(at, _)| !text[at + name.len()..].starts_with(char::is_alphanumeric))
    };
    for code in Code::ALL {
        let name = format!("Code::{code:?}");
        assert!(names(&given, &name), "{name} is given by nothing");
        assert!(names(&tests, &name) || names(&tests, &code.to_string()), "{name} is provoked by no test");
    }
}
