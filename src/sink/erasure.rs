//! What a target has of a person, or of a content, and how much of that can be taken out of it.

use uuid::Uuid;

/// Whom, or what, nothing is to be left of.
#[derive(Debug, Clone)]
pub enum Subject {
    /// A user, by each id that may stand for him: his own and his pseudonym.
    User(Vec<Uuid>),
    /// A content.
    Content(Uuid),
}

impl Subject {
    /// The field of an event's record that names it.
    pub fn field(&self) -> &'static str {
        match self {
            Subject::User(_) => "user_id",
            Subject::Content(_) => "content_id",
        }
    }

    /// The ids that may stand there.
    pub fn ids(&self) -> &[Uuid] {
        match self {
            Subject::User(ids) => ids,
            Subject::Content(id) => std::slice::from_ref(id),
        }
    }
}

/// What there is of it in one place.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Traces {
    /// How many rows, keys or letters can be taken out; `None` where nothing can.
    pub found: Option<u64>,
    /// What stays all the same, and until when, in a sentence.
    pub stays: Option<String>,
}

impl Traces {
    /// All of it can be taken out.
    pub fn of(found: u64) -> Traces {
        Traces { found: Some(found), stays: None }
    }

    /// Nothing can be.
    pub fn staying(stays: impl Into<String>) -> Traces {
        Traces { found: None, stays: Some(stays.into()) }
    }

    /// What stays of what there is.
    pub fn but(self, stays: impl Into<String>) -> Traces {
        Traces { stays: (self.found != Some(0)).then(|| stays.into()), ..self }
    }
}
