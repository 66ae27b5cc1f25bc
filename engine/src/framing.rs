//! gRPC's length-prefixed messages. Whole messages that arrive in one chunk are passed on without a copy.

use bytes::{Buf, BufMut, Bytes, BytesMut};

const PREFIX: usize = 5;

/// Why bytes are no acceptable message.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    TooLarge { size: usize, max: usize },
    Compressed,
}

/// One uncompressed message with its prefix.
pub fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(message.len() + PREFIX);
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(message);
    framed.freeze()
}

/// Cuts a byte stream into messages.
pub struct Deframer {
    whole: Bytes,
    joined: BytesMut,
    max: usize,
}

impl Deframer {
    pub fn new(max: usize) -> Self {
        Deframer {
            whole: Bytes::new(),
            joined: BytesMut::new(),
            max,
        }
    }

    /// Add what arrived.
    pub fn feed(&mut self, chunk: Bytes) {
        if self.joined.is_empty() {
            if self.whole.is_empty() {
                self.whole = chunk;
                return;
            }
            let expected = message_size(&self.whole).map_or(0, |size| size.min(self.max) + PREFIX);
            self.joined.reserve(expected.max(self.whole.len() + chunk.len()));
            self.joined.extend_from_slice(&std::mem::take(&mut self.whole));
        }
        self.joined.extend_from_slice(&chunk);
    }

    /// The next whole message, if there is one.
    pub fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let bytes: &[u8] = if self.joined.is_empty() {
            &self.whole
        } else {
            &self.joined
        };
        let Some(size) = message_size(bytes) else {
            return Ok(None);
        };
        if size > self.max {
            return Err(Fault::TooLarge { size, max: self.max });
        }
        if bytes[0] != 0 {
            return Err(Fault::Compressed);
        }
        if bytes.len() < PREFIX + size {
            return Ok(None);
        }
        Ok(Some(if self.joined.is_empty() {
            self.whole.advance(PREFIX);
            self.whole.split_to(size)
        } else {
            self.joined.advance(PREFIX);
            self.joined.split_to(size).freeze()
        }))
    }

    /// True between messages.
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.joined.is_empty()
    }
}

fn message_size(bytes: &[u8]) -> Option<usize> {
    Some(u32::from_be_bytes(bytes.get(1..PREFIX)?.try_into().ok()?) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_any_cut() {
        let sent: Vec<Vec<u8>> = vec![vec![], vec![7; 3], vec![1; 300]];
        let wire: Vec<u8> = sent.iter().flat_map(|m| frame(m).to_vec()).collect();
        for size in 1..wire.len() {
            let mut deframer = Deframer::new(1000);
            let mut got = Vec::new();
            for chunk in wire.chunks(size) {
                deframer.feed(Bytes::copy_from_slice(chunk));
                while let Some(message) = deframer.next().unwrap() {
                    got.push(message.to_vec());
                }
            }
            assert_eq!(got, sent);
            assert!(deframer.is_empty());
        }
    }

    #[test]
    fn too_large_and_compressed_are_told_from_the_prefix() {
        let mut deframer = Deframer::new(10);
        deframer.feed(Bytes::from_static(&[0, 0, 0, 0, 11]));
        assert_eq!(deframer.next(), Err(Fault::TooLarge { size: 11, max: 10 }));
        let mut deframer = Deframer::new(10);
        deframer.feed(Bytes::from_static(&[1, 0, 0, 0, 1]));
        assert_eq!(deframer.next(), Err(Fault::Compressed));
    }
}
