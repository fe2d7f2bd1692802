//! House rules that a compiler does not keep: the direction of imports, and the length of functions.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What a module must use although it stands below in `lib.rs`, each with its reason.
const EXCEPTIONS: [(&str, &str); 3] = [
    // each part's settings live with the part; the configuration is made of them all
    ("config", "web"),
    ("config", "ops"),
    // the list of sinks builds each from its own part of the configuration
    ("sink", "config"),
];

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

/// The modules that a source file names by `crate::`.
fn used(text: &str) -> Vec<String> {
    text.split("#[cfg(test)]")
        .next()
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .filter(|name: &String| !name.is_empty())
        .collect()
}

#[test]
fn modules_use_only_what_stands_above_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let order: BTreeMap<String, usize> = fs::read_to_string(root.join("lib.rs"))
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .enumerate()
        .map(|(place, name)| (name.to_owned(), place))
        .collect();
    let mut wrong = Vec::new();
    for file in sources(&root) {
        let module = module_of(&file, &root);
        let Some(place) = order.get(&module) else { continue };
        for name in used(&fs::read_to_string(&file).unwrap()) {
            let excepted = EXCEPTIONS.contains(&(module.as_str(), name.as_str()));
            if order.get(&name).is_some_and(|used| used > place) && !excepted {
                wrong.push(format!("{} uses {name}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "against the flow:\n{}", wrong.join("\n"));
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
