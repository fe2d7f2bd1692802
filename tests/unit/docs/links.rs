//! Every link between pages leads to a page and a heading that exist, and every page is in the table of contents.

use std::path::{Component, Path, PathBuf};

use super::pages::{Page, all, root};

/// The targets of a line's links: `[text](target)`.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

fn joined(page: &Page, target: &str) -> String {
    let folder = Path::new(&page.path).parent().unwrap();
    let mut path = PathBuf::new();
    for part in folder.join(target).components() {
        match part {
            Component::ParentDir => assert!(path.pop(), "{}: {target} leaves the repository", page.path),
            part => path.push(part),
        }
    }
    path.to_string_lossy().into_owned()
}

/// What is wrong with a link, if anything.
fn fault(page: &Page, target: &str, pages: &[Page]) -> Option<String> {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if path.is_empty() { page.path.clone() } else { joined(page, path) };
    let Some(found) = pages.iter().find(|page| page.path == path) else {
        return (!root().join(&path).exists()).then(|| format!("there is no {path}"));
    };
    let known = anchor.is_empty() || found.anchors().iter().any(|known| known == anchor);
    (!known).then(|| format!("{path} has no heading #{anchor}"))
}

#[test]
fn every_link_leads_somewhere() {
    let pages = all();
    let mut faults = Vec::new();
    for page in &pages {
        for (number, line) in page.prose() {
            for target in targets(line).filter(|target| !target.contains("://")) {
                let fault = fault(page, target, &pages);
                faults.extend(fault.map(|fault| format!("{}:{number}: {fault}", page.path)));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let pages = all();
    let contents = pages.iter().find(|page| page.path == "docs/SUMMARY.md").unwrap();
    let listed: Vec<String> =
        contents.text.lines().flat_map(targets).map(|target| joined(contents, target)).collect();
    for page in pages.iter().filter(|page| page.path.starts_with("docs/") && page.path != contents.path) {
        assert!(listed.contains(&page.path), "docs/SUMMARY.md leaves out {}", page.path);
    }
}

/// A site is made of docs/ alone: a link out of it would lead nowhere there.
#[test]
fn no_page_below_docs_links_out_of_it() {
    for page in all().iter().filter(|page| page.path.starts_with("docs/")) {
        for (number, line) in page.prose() {
            for target in targets(line).filter(|target| !target.contains("://") && !target.starts_with('#')) {
                assert!(joined(page, target).starts_with("docs/"), "{}:{number}: {target}", page.path);
            }
        }
    }
}

#[test]
fn the_readme_is_short() {
    let lines = all().into_iter().find(|page| page.path == "README.md").unwrap().text.lines().count();
    assert!(lines <= 150, "README.md has {lines} lines");
}
