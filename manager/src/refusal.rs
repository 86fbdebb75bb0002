//! From what went wrong to what the API says of it: one code of the closed list, and a sentence.

use bgb_protocol::api::{ErrorBody, ErrorCode};
use bgb_site::SiteError;

/// An error with a sentence of the caller's.
pub(crate) fn refusal(code: ErrorCode, error: impl Into<String>) -> ErrorBody {
    ErrorBody { error: error.into(), code }
}

/// What a site's error means to whoever asked.
pub(crate) fn of_site(error: &SiteError) -> ErrorBody {
    let code = match error {
        SiteError::NotFound { what: "device", .. } => ErrorCode::UnknownDevice,
        SiteError::NotFound { what: "collection", .. } => ErrorCode::UnknownCollection,
        SiteError::NotFound { what: "policy", .. } => ErrorCode::UnknownPolicy,
        SiteError::NotFound { what: "task", .. } => ErrorCode::UnknownTask,
        SiteError::NameTaken { .. } => ErrorCode::NameTaken,
        SiteError::EmptyTargets(_) => ErrorCode::NoTargets,
        SiteError::TargetsChanged { .. } => ErrorCode::TargetsChanged,
        SiteError::TaskOver(_) => ErrorCode::TaskOver,
        SiteError::Limit { what, .. } if what.contains("task") => ErrorCode::TooManyTasks,
        SiteError::Limit { .. } => ErrorCode::TooLarge,
        SiteError::BadName { .. }
        | SiteError::Validity(_)
        | SiteError::Start
        | SiteError::Codec(_)
        | SiteError::Action { .. }
        | SiteError::Policy(_)
        | SiteError::Address(_) => ErrorCode::BadRequest,
        error if error.is_unwritable() => ErrorCode::DatabaseUnavailable,
        _ => ErrorCode::Internal,
    };
    if code == ErrorCode::Internal {
        tracing::error!(%error, "a request failed");
    }
    refusal(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_thing_that_is_not_there_has_its_own_code() {
        for (what, code) in [
            ("device", ErrorCode::UnknownDevice),
            ("collection", ErrorCode::UnknownCollection),
            ("policy", ErrorCode::UnknownPolicy),
            ("task", ErrorCode::UnknownTask),
        ] {
            assert_eq!(of_site(&SiteError::NotFound { what, name: "x".to_owned() }).code, code);
        }
        assert_eq!(of_site(&SiteError::Busy).code, ErrorCode::DatabaseUnavailable);
    }
}
