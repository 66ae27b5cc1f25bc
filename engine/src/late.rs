//! Frames that come too late. A client may have written a new stream before it read of our GOAWAY. The HTTP/2 library passes over that stream's
//! head, data and reset, but takes its WINDOW_UPDATE for a breach, and the connection with every call that is still to be answered is lost. So
//! these become frames of a type that nobody knows, which everybody has to pass over (RFC 9113, 4.1 and 6.8).

use std::pin::Pin;
use std::task::{ready, Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};

const PREFACE: usize = 24;
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const UNKNOWN: u8 = 0xfa;
const ACK: u8 = 1;

/// Follows the frames that a client sends.
pub struct Late {
    /// Bytes until the next frame begins.
    skip: usize,
    /// A frame's head that has come in parts, how much of it there is, and how much has been passed on since it was whole.
    head: [u8; HEAD],
    have: usize,
    given: usize,
    highest: u32,
    draining: bool,
    /// The last stream that is answered, once a GOAWAY has named it.
    last: Option<u32>,
}

impl Late {
    pub fn new() -> Self {
        Late {
            skip: PREFACE,
            head: [0; HEAD],
            have: 0,
            given: 0,
            highest: 0,
            draining: false,
            last: None,
        }
    }

    /// The library says that it goes away, and sends a PING: once that has come back, it names the last stream.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Read what the client sends, whole heads at a time.
    pub fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        socket: &mut S,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        loop {
            if self.have == HEAD {
                let part = (HEAD - self.given).min(into.remaining());
                into.put_slice(&self.head[self.given..self.given + part]);
                self.given += part;
                if self.given == HEAD {
                    (self.have, self.given) = (0, 0);
                }
                return Poll::Ready(Ok(()));
            }
            if self.have > 0 {
                let mut rest = ReadBuf::new(&mut self.head[self.have..]);
                ready!(Pin::new(&mut *socket).poll_read(context, &mut rest))?;
                let count = rest.filled().len();
                if count == 0 {
                    return Poll::Ready(Ok(())); // the end
                }
                self.have += count;
                if self.have == HEAD {
                    let mut head = self.head;
                    self.look(&mut head);
                    self.head = head;
                }
                continue;
            }
            let before = into.filled().len();
            ready!(Pin::new(&mut *socket).poll_read(context, into))?;
            let count = into.filled().len() - before;
            let whole = self.follow(&mut into.filled_mut()[before..]);
            into.set_filled(before + whole);
            if whole > 0 || count == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Look at every head in what has come; how many bytes may be passed on: all but a part of a head at the end, which is kept.
    fn follow(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let part = self.skip.min(bytes.len() - at);
            self.skip -= part;
            at += part;
            let Some(head) = bytes[at..].first_chunk_mut() else {
                self.have = bytes.len() - at;
                self.head[..self.have].copy_from_slice(&bytes[at..]);
                return at;
            };
            self.look(head);
            at += HEAD;
        }
        at
    }

    fn look(&mut self, head: &mut [u8; HEAD]) {
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        self.skip = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        match head[3] {
            HEADERS => self.highest = self.highest.max(stream),
            PING if self.draining && head[4] & ACK != 0 => {
                self.last.get_or_insert(self.highest);
            }
            WINDOW_UPDATE if self.last.is_some_and(|last| stream > last) => head[3] = UNKNOWN,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream];
        bytes.extend_from_slice(payload);
        bytes
    }

    /// What comes out when bytes come in pieces of a size, and are taken in others.
    fn pass(late: &mut Late, bytes: &[u8], piece: usize, room: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        for mut part in bytes.chunks(piece) {
            while !part.is_empty() || late.have == HEAD {
                let mut taken = vec![0; room];
                let mut into = ReadBuf::new(&mut taken);
                assert!(late.poll_read(&mut part, &mut context, &mut into).is_ready());
                out.extend_from_slice(into.filled());
            }
        }
        out
    }

    #[test]
    fn only_window_updates_of_streams_beyond_the_last_one_change_their_type() {
        let before = [
            vec![b'*'; PREFACE],
            frame(4, 0, 0, b"settin"),
            frame(HEADERS, 4, 1, b"head"),
            frame(PING, ACK, 0, b"another!"),
            frame(HEADERS, 4, 3, &[8; 200]),
            frame(WINDOW_UPDATE, 0, 3, b"more"),
        ]
        .concat();
        let after = |kind: u8| {
            [
                frame(HEADERS, 4, 5, b"head"),
                frame(PING, ACK, 0, b"shutdown"),
                frame(WINDOW_UPDATE, 0, 0, b"more"),
                frame(WINDOW_UPDATE, 0, 5, b"more"),
                frame(HEADERS, 4, 7, b"late"),
                frame(kind, 0, 7, b"more"),
                frame(0, 1, 7, b"\x08\x08\x08"),
                frame(kind, 0, 9, b"more"),
            ]
            .concat()
        };
        for piece in [1, 2, 3, 7, 8, 9, 10, 11, 26, 50, 1000] {
            for room in [1, 2, 5, 9, 64, 1000] {
                let mut late = Late::new();
                assert!(pass(&mut late, &before, piece, room) == before);
                late.drain();
                let passed = pass(&mut late, &after(WINDOW_UPDATE), piece, room);
                assert!(passed == after(UNKNOWN), "pieces of {piece}, room for {room}");
            }
        }
    }

    #[test]
    fn nothing_changes_while_nobody_goes_away() {
        let sent = [
            vec![b'*'; PREFACE],
            frame(PING, ACK, 0, b"unasked!"),
            frame(WINDOW_UPDATE, 0, 9, b"more"),
        ]
        .concat();
        assert_eq!(pass(&mut Late::new(), &sent, 5, 64), sent);
    }
}
