//! What the Storage Write service says when it does not do what was asked.

use gcp_bigquery_client::google::cloud::bigquery::storage::v1::StorageError;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::storage_error::StorageErrorCode;
use gcp_bigquery_client::google::rpc;
use prost::Message;
use tonic::{Code, Status};

use super::rest::ROLES;
use crate::error::{self, Error};

/// A refused call or append.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// gRPC's code.
    pub code: Code,
    /// The service's own code, when it gave one.
    pub reason: StorageErrorCode,
    /// The service's words.
    pub message: String,
}

impl Refusal {
    /// Whether the same may work a little later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.code,
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::ResourceExhausted
                | Code::Internal
                | Code::Aborted
                | Code::Cancelled
                | Code::Unknown
        )
    }

    /// Whether it may be for what a row says, although no row is named.
    pub fn may_blame_rows(&self) -> bool {
        self.code == Code::InvalidArgument && self.reason == StorageErrorCode::Unspecified
    }

    /// Whether it may be a row at which the service itself fails, so that waiting is of no use.
    pub fn may_hide_a_refusal(&self) -> bool {
        matches!(self.code, Code::Internal | Code::Unknown)
    }

    /// What may be told: what the service is called by its codes, and its words where they are of who asks and of the
    /// service itself. What it finds fault with in a request may quote a row.
    fn told(&self) -> String {
        let reason = match self.reason {
            StorageErrorCode::Unspecified => String::new(),
            reason => format!(", {}", reason.as_str_name()),
        };
        match self.code {
            Code::PermissionDenied
            | Code::Unauthenticated
            | Code::NotFound
            | Code::Unavailable
            | Code::DeadlineExceeded
            | Code::ResourceExhausted => format!("{} ({:?}{reason})", self.message, self.code),
            code => format!("{code:?}{reason}"),
        }
    }

    /// Whether what was named (table or stream) is not there.
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound || self.reason == StorageErrorCode::StreamNotFound
    }

    /// The error of somebody who cannot go on. `what` begins the sentence: "bigquery …: a stream cannot be made".
    pub fn into_error(self, what: impl std::fmt::Display) -> Error {
        let new = |code| Error::new(code, what.to_string()).because(self.told());
        match (self.code, self.reason) {
            (Code::PermissionDenied | Code::Unauthenticated, _) => {
                new(error::Code::BigQueryRefused).hint(ROLES)
            }
            // for minutes after a column was added too; one that is gone is found by the next recovery
            (_, StorageErrorCode::SchemaMismatchExtraFields) => new(error::Code::BigQueryUnreachable)
                .hint("a column just added takes some minutes to be known everywhere; it is tried again"),
            (_, StorageErrorCode::StreamFinalized | StorageErrorCode::InvalidStreamState)
            | (Code::NotFound | Code::OutOfRange | Code::AlreadyExists, _) => new(error::Code::Lost),
            _ if self.is_transient() => new(error::Code::BigQueryUnreachable),
            _ => new(error::Code::Protocol),
        }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let detailed = rpc::Status::decode(status.details()).unwrap_or_default();
        Refusal { code: status.code(), reason: reason(&detailed), message: status.message().to_owned() }
    }
}

impl From<rpc::Status> for Refusal {
    fn from(status: rpc::Status) -> Self {
        Refusal { code: Code::from(status.code), reason: reason(&status), message: status.message }
    }
}

impl From<StorageError> for Refusal {
    fn from(error: StorageError) -> Self {
        Refusal { code: Code::FailedPrecondition, reason: error.code(), message: error.error_message }
    }
}

fn reason(status: &rpc::Status) -> StorageErrorCode {
    let named = status.details.iter().find(|detail| detail.type_url.ends_with(".StorageError"));
    let error = named.and_then(|detail| StorageError::decode(detail.value.as_slice()).ok());
    error.map_or(StorageErrorCode::Unspecified, |error| error.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_services_own_code_is_found_in_the_details() {
        let error = StorageError {
            code: StorageErrorCode::SchemaMismatchExtraFields as i32,
            entity: "t".into(),
            error_message: "extra".into(),
        };
        let detail = prost_types::Any {
            type_url: "type.googleapis.com/google.cloud.bigquery.storage.v1.StorageError".into(),
            value: error.encode_to_vec(),
        };
        let status = rpc::Status { code: 3, message: "no".into(), details: vec![detail] };
        let wire = Status::with_details(Code::InvalidArgument, "no", status.encode_to_vec().into());
        assert_eq!(Refusal::from(wire), Refusal::from(status.clone()));
        let refusal = Refusal::from(status);
        assert_eq!(refusal.reason, StorageErrorCode::SchemaMismatchExtraFields);
        assert_eq!(refusal.into_error("x").code(), error::Code::BigQueryUnreachable);
    }

    #[test]
    fn what_the_service_says_of_a_request_is_not_carried_on() {
        let told = |code| Refusal::from(Status::new(code, "canary")).into_error("x").chain();
        for code in
            [Code::InvalidArgument, Code::Internal, Code::Unknown, Code::FailedPrecondition, Code::Aborted]
        {
            assert_eq!(told(code), format!("x: {code:?}"));
        }
        assert_eq!(told(Code::PermissionDenied), "x: canary (PermissionDenied)");
    }

    #[test]
    fn each_code_has_its_meaning() {
        let meaning = |code| Refusal::from(Status::new(code, "")).into_error("x").code();
        assert_eq!(meaning(Code::Unavailable), error::Code::BigQueryUnreachable);
        assert_eq!(meaning(Code::DeadlineExceeded), error::Code::BigQueryUnreachable);
        assert_eq!(meaning(Code::NotFound), error::Code::Lost);
        assert_eq!(meaning(Code::OutOfRange), error::Code::Lost);
        assert_eq!(meaning(Code::PermissionDenied), error::Code::BigQueryRefused);
        assert_eq!(meaning(Code::InvalidArgument), error::Code::Protocol);
    }
}
