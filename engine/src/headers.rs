//! Headers between Python and HTTP: conversion, `-bin` values, and which ones a proxy passes on.

use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, Engine};
use http::{HeaderMap, HeaderName, HeaderValue};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

pub type Pairs = Vec<(HeaderName, HeaderValue)>;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Of one connection only (RFC 9110, 7.6.1), besides those that `connection` names.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

fn is_binary(name: &str) -> bool {
    name.ends_with("-bin")
}

/// Python's `[(name, value)]`; ValueError names the pair that is no header.
pub fn from_python(headers: &Bound<'_, PyAny>) -> PyResult<Pairs> {
    if headers.len().is_ok_and(|count| count == 0) {
        return Ok(Vec::new());
    }
    headers.try_iter()?.map(|pair| pair_from_python(&pair?)).collect()
}

fn pair_from_python(pair: &Bound<'_, PyAny>) -> PyResult<(HeaderName, HeaderValue)> {
    let (name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = pair.extract()?;
    let text: &str = &name.extract::<std::borrow::Cow<'_, str>>()?;
    let bytes: &[u8] = value.extract()?;
    let bad = || {
        PyValueError::new_err(format!(
            "header {text:?}: the name must be an HTTP token, the value must hold no control characters"
        ))
    };
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| bad())?;
    let value = if is_binary(name.as_str()) {
        HeaderValue::try_from(BASE64.encode(bytes))
    } else {
        HeaderValue::from_bytes(bytes)
            .map_err(http::Error::from)
            .map_err(|_| bad())
            .map(Ok)?
    };
    Ok((name, value.map_err(|_| bad())?))
}

/// The value as policy sees it.
pub fn value_to_python<'py>(py: Python<'py>, name: &str, value: &HeaderValue) -> Bound<'py, PyBytes> {
    if is_binary(name) {
        if let Ok(decoded) = BASE64.decode(value.as_bytes()) {
            return PyBytes::new(py, &decoded);
        }
    }
    PyBytes::new(py, value.as_bytes())
}

pub fn to_python<'py>(py: Python<'py>, headers: &HeaderMap) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for (name, value) in headers {
        list.append((name.as_str(), value_to_python(py, name.as_str(), value)))?;
    }
    Ok(list)
}

/// A name, or the beginning of names.
pub enum Pattern {
    Name(HeaderName),
    Prefix(String),
}

impl Pattern {
    pub fn parse(text: &str) -> PyResult<Pattern> {
        if let Some(prefix) = text.strip_suffix('*') {
            return Ok(Pattern::Prefix(prefix.to_ascii_lowercase()));
        }
        let name = HeaderName::from_bytes(text.as_bytes());
        name.map(Pattern::Name)
            .map_err(|_| PyValueError::new_err(format!("header {text:?}: must be an HTTP token")))
    }
}

/// Take `remove` away and let `replace` replace or add.
pub fn rewrite(headers: &mut HeaderMap, replace: &Pairs, remove: &[Pattern]) {
    for pattern in remove {
        match pattern {
            Pattern::Name(name) => {
                headers.remove(name);
            }
            Pattern::Prefix(prefix) => {
                let found: Vec<HeaderName> = headers
                    .keys()
                    .filter(|n| n.as_str().starts_with(prefix))
                    .cloned()
                    .collect();
                for name in found {
                    headers.remove(name);
                }
            }
        }
    }
    for (name, _) in replace {
        headers.remove(name);
    }
    for (name, value) in replace {
        headers.append(name.clone(), value.clone());
    }
}

/// Take away what belongs to one HTTP/1.1 connection (HTTP/2 has none of it).
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(http::header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
        pairs.collect()
    }

    #[test]
    fn hop_by_hop_headers_and_those_named_stay_here() {
        let mut headers = map(&[
            ("connection", "close, x-once"),
            ("x-once", "1"),
            ("te", "trailers"),
            ("x-kept", "1"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("x-kept", "1")]));
    }

    #[test]
    fn rewriting_removes_replaces_and_adds() {
        let mut headers = map(&[("k-a", "1"), ("k-b", "2"), ("drop", "3"), ("keep", "4"), ("set", "old")]);
        let replace = vec![
            (HeaderName::from_static("set"), HeaderValue::from_static("new")),
            (HeaderName::from_static("added"), HeaderValue::from_static("5")),
        ];
        rewrite(
            &mut headers,
            &replace,
            &[Pattern::parse("k-*").unwrap(), Pattern::parse("drop").unwrap()],
        );
        assert_eq!(headers, map(&[("keep", "4"), ("set", "new"), ("added", "5")]));
    }
}
