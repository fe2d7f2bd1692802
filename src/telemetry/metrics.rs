//! stub
pub fn event_received(_t: &'static str, _o: &'static str) {}
pub fn change_skipped(_t: &'static str, _o: &'static str) {}
pub fn oversized_row() {}
pub fn unknown_content() {}
pub fn dead_letter(_r: &'static str) {}
