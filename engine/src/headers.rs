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

/// The items of a comma-separated header.
fn items(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// The protocol that one side of an HTTP/1.1 connection wants to switch to. HTTP itself (h2c) is none: what follows would be requests that
/// nobody routes.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = items(headers, http::header::CONNECTION).any(|item| item.eq_ignore_ascii_case("upgrade"));
    let http = items(headers, http::header::UPGRADE).any(|item| {
        let protocol = item.split('/').next().unwrap_or(item);
        ["h2c", "h2", "http", "tls"]
            .iter()
            .any(|known| protocol.eq_ignore_ascii_case(known))
    });
    headers.get(http::header::UPGRADE).filter(|_| asked && !http).cloned()
}

/// Say that the connection switches to a protocol.
pub fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(http::header::UPGRADE, protocol);
}

/// Take away what belongs to one HTTP/1.1 connection (HTTP/2 has none of it).
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = items(headers, http::header::CONNECTION)
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
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
    fn a_switch_of_protocols_is_asked_for_by_both_headers_and_never_to_http() {
        for (connection, protocol, expected) in [
            ("Upgrade", "websocket", true),
            ("keep-alive, upgrade", "WebSocket", true),
            ("keep-alive", "websocket", false),
            ("Upgrade, HTTP2-Settings", "h2c", false),
            ("upgrade", "websocket, H2C", false),
            ("upgrade", "HTTP/2.0", false),
        ] {
            let headers = map(&[("connection", connection), ("upgrade", protocol)]);
            assert_eq!(upgrade(&headers).is_some(), expected, "{connection}: {protocol}");
        }
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
