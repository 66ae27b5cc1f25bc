//! The body of an HTTP/2 request, read as far as policy or a forward needs it.

use crate::call::Kind;
use crate::framing::{Deframer, Fault};
use crate::grpc;
use crate::listener::Options;
use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use std::time::Duration;

/// Time for the first message of a call before the call is told without it.
const PEEK_PATIENCE: Duration = Duration::from_millis(10);

/// The body of a request, as far as it has been read.
pub struct Intake {
    pub body: RecvStream,
    deframer: Deframer,
    /// What was read and may have to be sent again, raw.
    pub retained: Vec<Bytes>,
    pub ended: bool,
}

/// Why reading ended early.
pub enum Trouble {
    Gone,
    Refuse(i32, String),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::TooLarge { size, max } => Trouble::Refuse(
                grpc::RESOURCE_EXHAUSTED,
                format!("request message of {size} bytes: the most taken is {max}"),
            ),
            Fault::Compressed => {
                let text = "compressed request message: only grpc-encoding identity is taken".to_owned();
                Trouble::Refuse(grpc::UNIMPLEMENTED, text)
            }
        }
    }
}

impl Intake {
    pub fn new(body: RecvStream, max: usize) -> Intake {
        let ended = body.is_end_stream();
        Intake {
            body,
            deframer: Deframer::new(max),
            retained: Vec::new(),
            ended,
        }
    }

    /// The next chunk; its window is given back.
    async fn chunk(&mut self) -> Result<Option<Bytes>, Trouble> {
        match self.body.data().await {
            Some(Ok(chunk)) => {
                let _ = self.body.flow_control().release_capacity(chunk.len());
                self.ended = self.body.is_end_stream();
                Ok(Some(chunk))
            }
            Some(Err(_)) => Err(Trouble::Gone),
            None => {
                self.ended = true;
                Ok(None)
            }
        }
    }

    /// The next message; None at the end of the body.
    pub async fn message(&mut self, retain: bool) -> Result<Option<Bytes>, Trouble> {
        loop {
            if let Some(message) = self.deframer.next()? {
                return Ok(Some(message));
            }
            match self.chunk().await? {
                Some(chunk) => {
                    if retain {
                        self.retained.push(chunk.clone());
                    }
                    self.deframer.feed(chunk);
                }
                None if self.deframer.is_empty() => return Ok(None),
                None => {
                    let text = "the request ends within a message".to_owned();
                    return Err(Trouble::Refuse(grpc::INTERNAL, text));
                }
            }
        }
    }

    /// The one message of a unary call.
    async fn only_message(&mut self) -> Result<Bytes, Trouble> {
        let wrong = |count| {
            Trouble::Refuse(
                grpc::INTERNAL,
                format!("a unary call takes exactly one request message, not {count}"),
            )
        };
        let first = self.message(true).await?.ok_or_else(|| wrong("none"))?;
        match self.message(true).await? {
            None => Ok(first),
            Some(_) => Err(wrong("several")),
        }
    }

    /// A whole body that is not gRPC.
    async fn all(&mut self, max: usize) -> Result<Bytes, Trouble> {
        let mut joined = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if joined.len() + chunk.len() > max {
                return Err(Trouble::Refuse(
                    413,
                    format!("request body: the most taken is {max} bytes"),
                ));
            }
            joined.extend_from_slice(&chunk);
        }
        Ok(joined.freeze())
    }

    /// What policy sees first, whether it is all, and whether it is a message.
    pub async fn first(&mut self, kind: Kind, options: &Options) -> Result<(Bytes, bool, bool), Trouble> {
        Ok(match kind {
            Kind::Unary => (self.only_message().await?, true, true),
            Kind::Streaming => match tokio::time::timeout(PEEK_PATIENCE, self.message(false)).await {
                Ok(Ok(Some(message))) => (message, self.ended && self.deframer.is_empty(), true),
                Ok(Ok(None)) | Err(_) => (Bytes::new(), false, false),
                Ok(Err(trouble)) => return Err(trouble),
            },
            Kind::Peek => match tokio::time::timeout(PEEK_PATIENCE, self.message(true)).await {
                Ok(Ok(Some(message))) => (message, self.ended && self.deframer.is_empty(), true),
                Ok(Ok(None)) => (Bytes::new(), true, true),
                Ok(Err(Trouble::Gone)) => return Err(Trouble::Gone),
                Ok(Err(Trouble::Refuse(..))) | Err(_) => (Bytes::new(), false, false),
            },
            Kind::Http if options.peek => (Bytes::new(), self.ended, true),
            Kind::Http => {
                let body = self.all(options.max_message).await?;
                self.retained.push(body.clone());
                (body, true, true)
            }
        })
    }
}
