//! Names in SQL and in the replication grammar, which both quote alike as long as
//! `standard_conforming_strings` is on, PostgreSQL's default.

/// `Mixed "name"` → `"Mixed ""name"""`.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `it's` → `'it''s'`.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_doubled() {
        assert_eq!(identifier(r#"a"b'c"#), r#""a""b'c""#);
        assert_eq!(literal(r#"a"b'c\"#), r#"'a"b''c\'"#);
    }
}
