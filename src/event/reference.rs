//! The reference of fields and columns, as Markdown: what the documentation shows.

use std::fmt::Write as _;

use super::encoding::json::type_name;
use super::schema::{CONTENT_FIELDS, EVENT_FIELDS, SOURCE_TABLES};

/// Of the records' fields.
pub fn records_markdown() -> String {
    let mut out = String::new();
    for (title, fields) in
        [("An event's record", &EVENT_FIELDS[..]), ("A content row's record", &CONTENT_FIELDS[..])]
    {
        section(&mut out, title, ["Field", "In JSON", "null when", "What it holds"]);
        for field in fields {
            let null_when = if field.required() { "never" } else { field.null_when };
            row(
                &mut out,
                [&format!("`{}`", field.name), type_name(field.kind), null_when, field.description],
            );
        }
    }
    out
}

/// Of the source tables' columns.
pub fn tables_markdown() -> String {
    let mut out = String::new();
    for table in SOURCE_TABLES {
        section(
            &mut out,
            &format!("The table `{}`", table.name),
            ["Column", "Types accepted, and the best", "Needed", "What it holds"],
        );
        for column in table.columns {
            let types = format!("{}; best {}", column.accepts(), column.sql_type());
            let needed = if column.required { "yes" } else { "" };
            row(&mut out, [&format!("`{}`", column.name), &types, needed, column.description]);
        }
    }
    out
}

fn section(out: &mut String, title: &str, heads: [&str; 4]) {
    let gap = if out.is_empty() { "" } else { "\n" };
    // writing into a string cannot fail
    let _ = writeln!(out, "{gap}## {title}\n");
    row(out, heads);
    row(out, ["---"; 4]);
}

fn row(out: &mut String, cells: [&str; 4]) {
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_has_every_field_and_column() {
        let reference = records_markdown() + &tables_markdown();
        let fields = EVENT_FIELDS.iter().chain(&CONTENT_FIELDS).map(|field| field.name);
        let columns = SOURCE_TABLES.iter().flat_map(|table| table.column_names());
        for name in fields.chain(columns) {
            assert!(reference.contains(&format!("| `{name}` | ")), "{name} in\n{reference}");
        }
        let headed = reference.lines().filter(|line| line.starts_with("## ")).count();
        assert_eq!(headed, 2 + SOURCE_TABLES.len(), "{reference}");
    }
}
