//! The pages, and what Markdown they are made of.

use std::fs;
use std::path::{Path, PathBuf};

/// One page: its path from the root of the repository, and its text.
pub struct Page {
    pub path: String,
    pub text: String,
}

impl Page {
    /// Its lines outside code blocks, each with its number.
    pub fn prose(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut code = false;
        self.text.lines().enumerate().filter_map(move |(number, line)| {
            if line.trim_start().starts_with("```") {
                code = !code;
                return None;
            }
            (!code).then_some((number + 1, line))
        })
    }

    /// What is code, each with its line: what stands between backticks, and the lines of code blocks.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut block = false;
        self.text.lines().enumerate().flat_map(move |(number, line)| {
            let fence = line.trim_start().starts_with("```");
            block ^= fence;
            let code: Vec<&str> = match (fence, block) {
                (true, _) => Vec::new(),
                (false, true) => vec![line],
                (false, false) => line.split('`').skip(1).step_by(2).collect(),
            };
            code.into_iter().map(move |code| (number + 1, code))
        })
    }

    /// What its headings are called in a link, as GitHub and mdBook make it of them.
    pub fn anchors(&self) -> Vec<String> {
        let headings = self.prose().filter(|(_, line)| line.starts_with('#'));
        headings.map(|(_, line)| anchor(line.trim_start_matches('#').trim())).collect()
    }
}

fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and every page below docs/.
pub fn all() -> Vec<Page> {
    let mut paths = vec![root().join("README.md")];
    find(&root().join("docs"), &mut paths);
    paths.sort();
    let page = |path: PathBuf| Page {
        path: path.strip_prefix(root()).unwrap().to_string_lossy().into_owned(),
        text: fs::read_to_string(&path).unwrap(),
    };
    paths.into_iter().map(page).collect()
}

fn find(folder: &Path, into: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match path.extension() {
            None if path.is_dir() => find(&path, into),
            Some(extension) if extension == "md" => into.push(path),
            _ => {}
        }
    }
}
