//! A request's path and query, decoded: names in a path are percent-encoded, filters stand behind the `?`.
//!
//! Law: a filter that a list does not have is refused and not passed over, since whoever sent it believes that it filters.

use std::collections::BTreeMap;
use std::str::FromStr;

use bgb_protocol::api::{ErrorBody, ErrorCode, PAGE_DEFAULT, PAGE_MAX};

use crate::refusal::refusal;

/// Parts that a path may have behind the prefix: the longest has three.
const SEGMENTS_MAX: usize = 8;
/// Filters that a query may have.
const FILTERS_MAX: usize = 16;

/// The path's parts behind `prefix`, decoded; `None` when it is none of ours.
pub(crate) fn segments(path: &str, prefix: &str) -> Option<Vec<String>> {
    let rest = path.strip_prefix(prefix)?.strip_prefix('/')?;
    let parts: Vec<_> = rest.split('/').take(SEGMENTS_MAX + 1).map(decode).collect::<Option<_>>()?;
    (parts.len() <= SEGMENTS_MAX).then_some(parts)
}

/// The filters of a request.
pub(crate) struct Query {
    filters: BTreeMap<String, String>,
}

impl Query {
    /// Reads what stands behind the `?`, if anything does.
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, ErrorBody> {
        let mut filters = BTreeMap::new();
        for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (decode(name), decode(&value.replace('+', "%20"))) else {
                return Err(wrong(format!("the query {pair:?} is not percent-encoded as it should be")));
            };
            if filters.len() == FILTERS_MAX || filters.insert(name.clone(), value).is_some() {
                return Err(wrong(format!(
                    "the query says {name:?} twice, or has more than {FILTERS_MAX} filters"
                )));
            }
        }
        Ok(Self { filters })
    }

    /// Takes a filter out; `None` when it was not given, or is empty.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        self.filters.remove(name).filter(|value| !value.is_empty())
    }

    /// Takes a filter out and reads it; `rule` says what it may be.
    pub(crate) fn take_parsed<T: FromStr>(&mut self, name: &str, rule: &str) -> Result<Option<T>, ErrorBody> {
        let Some(text) = self.take(name) else { return Ok(None) };
        let wrong_value = || wrong(format!("{name} is {text:?}; it is {rule}"));
        text.parse().map(Some).map_err(|_| wrong_value())
    }

    /// Takes a filter out whose values are the words of a serialised enum.
    pub(crate) fn take_word<T: serde::de::DeserializeOwned>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, ErrorBody> {
        let Some(text) = self.take(name) else { return Ok(None) };
        let read = serde_json::from_value(serde_json::Value::String(text.clone()));
        read.map(Some).map_err(|error| wrong(format!("{name} is {text:?}: {error}")))
    }

    /// Rows of the page that is wanted.
    pub(crate) fn take_limit(&mut self) -> Result<usize, ErrorBody> {
        let rule = format!("a number from 1 to {PAGE_MAX}");
        let limit = self.take_parsed::<u32>("limit", &rule)?.unwrap_or(PAGE_DEFAULT);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(wrong(format!("limit is {limit}; it is {rule}")));
        }
        Ok(limit as usize)
    }

    /// Refuses every filter: requests that change something have none.
    pub(crate) fn refuse_all(self) -> Result<Self, ErrorBody> {
        match self.filters.keys().next() {
            Some(name) => Err(wrong(format!("this request takes no {name:?} in its query"))),
            None => Ok(self),
        }
    }

    /// Refuses what nobody has taken.
    pub(crate) fn finish(self) -> Result<(), ErrorBody> {
        match self.filters.into_keys().next() {
            Some(name) => Err(wrong(format!("this list has no filter {name:?}"))),
            None => Ok(()),
        }
    }
}

fn wrong(error: String) -> ErrorBody {
    refusal(ErrorCode::BadRequest, error)
}

/// Undoes percent-encoding (RFC 3986 section 2.1); `None` when it is malformed or no UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        if byte == b'%' {
            let digits = std::str::from_utf8(behind.get(..2)?).ok()?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &behind[2..];
        } else {
            bytes.push(byte);
            rest = behind;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_path_are_decoded_after_it_was_split() {
        let parts = segments("/api/v1/collections/Finance%20%2F%20laptops/members", "/api/v1").unwrap();
        assert_eq!(parts, ["collections", "Finance / laptops", "members"]);
        assert_eq!(segments("/api/v1", "/api/v1"), None);
        assert_eq!(segments("/api/v1/a%2", "/api/v1"), None);
        assert_eq!(segments("/api/v1/a%ff", "/api/v1"), None);
        assert_eq!(segments("/api/v1/a%+1", "/api/v1"), None);
        assert_eq!(segments(&format!("/api/v1{}", "/a".repeat(100)), "/api/v1"), None);
    }

    #[test]
    fn a_filter_that_is_not_known_is_refused() {
        let mut query = Query::parse(Some("name=pc+1&colour=red")).unwrap();
        assert_eq!(query.take("name").as_deref(), Some("pc 1"));
        assert!(query.finish().unwrap_err().error.contains("colour"));
    }

    #[test]
    fn a_limit_has_its_limits() {
        let limit = |text| Query::parse(text).unwrap().take_limit();
        assert_eq!(limit(None).unwrap(), 100);
        assert_eq!(limit(Some("limit=1000")).unwrap(), 1_000);
        for wrong in ["limit=0", "limit=1001", "limit=many"] {
            assert_eq!(limit(Some(wrong)).unwrap_err().code, ErrorCode::BadRequest);
        }
    }
}
