//! What gRPC adds to HTTP/2: timeouts, status trailers, percent-coded messages, how HTTP failures map to codes.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use std::time::Duration;

pub const CANCELLED: i32 = 1;
pub const UNKNOWN: i32 = 2;
pub const DEADLINE_EXCEEDED: i32 = 4;
pub const PERMISSION_DENIED: i32 = 7;
pub const RESOURCE_EXHAUSTED: i32 = 8;
pub const UNIMPLEMENTED: i32 = 12;
pub const INTERNAL: i32 = 13;
pub const UNAVAILABLE: i32 = 14;
pub const UNAUTHENTICATED: i32 = 16;

pub static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub static REFUSED: HeaderName = HeaderName::from_static("cloudstate-refused");
pub const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// True for `application/grpc`, `application/grpc+proto`, …; false for gRPC-Web.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// `grpc-timeout`: up to eight digits and a unit; None when it is malformed.
pub fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits
        .iter()
        .fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// The finest unit that fits eight digits.
pub fn format_timeout(timeout: Duration) -> HeaderValue {
    const LIMIT: u128 = 99_999_999;
    let text = if timeout.as_micros() <= LIMIT {
        format!("{}u", timeout.as_micros().max(1))
    } else if timeout.as_millis() <= LIMIT {
        format!("{}m", timeout.as_millis())
    } else {
        format!("{}S", u128::from(timeout.as_secs()).min(LIMIT))
    };
    HeaderValue::try_from(text).expect("digits and a letter are a header value")
}

/// A status message as header value: everything but printable ASCII, and `%`, is percent-coded.
pub fn encode_message(message: &str) -> HeaderValue {
    let mut coded = Vec::with_capacity(message.len());
    for byte in message.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            coded.push(byte);
        } else {
            coded.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    HeaderValue::from_bytes(&coded).expect("printable ASCII is a header value")
}

/// The inverse of `encode_message`; what is malformed stays as it is.
pub fn decode_message(value: &[u8]) -> String {
    let mut plain = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, tail)) = rest.split_first() {
        let coded = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match coded.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) if byte == b'%' => {
                plain.push(decoded);
                rest = &tail[2..];
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// Status, message and further trailers.
pub fn trailers(status: i32, message: &str, more: Vec<(HeaderName, HeaderValue)>) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2 + more.len());
    let status = if status == 0 {
        HeaderValue::from_static("0")
    } else {
        HeaderValue::from(status)
    };
    trailers.insert(GRPC_STATUS.clone(), status);
    if !message.is_empty() {
        trailers.insert(GRPC_MESSAGE.clone(), encode_message(message));
    }
    for (name, value) in more {
        trailers.append(name, value);
    }
    trailers
}

/// The head of an answer with messages.
pub fn head(headers: Vec<(HeaderName, HeaderValue)>) -> Response<()> {
    let mut head = Response::new(());
    head.headers_mut().insert(http::header::CONTENT_TYPE, CONTENT_TYPE);
    for (name, value) in headers {
        head.headers_mut().append(name, value);
    }
    head
}

/// An answer that is a status alone.
pub fn trailers_only(mut trailers: HeaderMap) -> Response<()> {
    trailers.insert(http::header::CONTENT_TYPE, CONTENT_TYPE);
    let mut head = Response::new(());
    *head.headers_mut() = trailers;
    head
}

/// The code of an answer without grpc-status.
pub fn status_of_http(status: StatusCode) -> i32 {
    match status.as_u16() {
        400 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        429 | 502 | 503 | 504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// The code of a lost stream.
pub fn status_of_error(error: &h2::Error) -> i32 {
    if error.is_go_away() || error.is_io() {
        return UNAVAILABLE;
    }
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => UNAVAILABLE,
        Some(h2::Reason::CANCEL) => CANCELLED,
        Some(h2::Reason::ENHANCE_YOUR_CALM) => RESOURCE_EXHAUSTED,
        Some(h2::Reason::INADEQUATE_SECURITY) => PERMISSION_DENIED,
        _ => INTERNAL,
    }
}

/// True when the peer says that it has not looked at the stream: REFUSED_STREAM, or above the last id of its GOAWAY.
pub fn is_refusal(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let cases: [(&[u8], Option<Duration>); 9] = [
            (b"1H", Some(Duration::from_secs(3600))),
            (b"2M", Some(Duration::from_secs(120))),
            (b"3S", Some(Duration::from_secs(3))),
            (b"100m", Some(Duration::from_millis(100))),
            (b"5u", Some(Duration::from_micros(5))),
            (b"99999999n", Some(Duration::from_nanos(99_999_999))),
            (b"123456789S", None),
            (b"S", None),
            (b"1.5S", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_timeout(text), expected, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn formatted_timeouts_are_read_back() {
        for timeout in [
            Duration::from_millis(250),
            Duration::from_secs(1000),
            Duration::from_secs(1_000_000),
        ] {
            assert_eq!(parse_timeout(format_timeout(timeout).as_bytes()), Some(timeout));
        }
        assert_eq!(format_timeout(Duration::ZERO), "1u");
    }

    #[test]
    fn messages_keep_every_character() {
        for message in ["", "plain", "100 % sure\n", "grüße ☃"] {
            assert_eq!(decode_message(encode_message(message).as_bytes()), message);
        }
        assert_eq!(decode_message(b"50% off%2"), "50% off%2");
    }

    #[test]
    fn content_types() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=x", true),
            ("application/grpc-web", false),
            ("text/plain", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(value));
            assert_eq!(is_grpc(&headers), expected, "{value}");
        }
    }
}
