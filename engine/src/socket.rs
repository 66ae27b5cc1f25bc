//! The TCP side of an HTTP/2 connection. What is written while a connection is polled leaves together, with one system call: HTTP/2 itself
//! flushes after each frame that is not tiny, and system calls were a quarter of what a call with some headers costs.

use crate::late::Late;
use std::cell::RefCell;
use std::future::{poll_fn, Future};
use std::io::{self, ErrorKind, IoSlice};
use std::pin::{pin, Pin};
use std::rc::Rc;
use std::task::{ready, Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are gathered before they are written in any case.
const MOST_GATHERED: usize = 64 * 1024;
/// Writes from this size on pass by what is gathered: they are worth a system call, and not a copy.
const LARGE: usize = 8 * 1024;
/// Room that is kept for the next bytes.
const KEPT: usize = 4 * 1024;

/// What is written to a socket, until `send` has handed it over.
struct Gathering<S> {
    socket: S,
    /// Of a connection from a client: what it sends when that is over.
    late: Option<Late>,
    bytes: Vec<u8>,
    sent: usize,
    /// Why the socket takes nothing any more.
    failed: Option<ErrorKind>,
}

/// A socket for whoever speaks HTTP/2. Clones are the same one: one is given away, another one `drive`s who has it.
pub struct Socket<S>(Rc<RefCell<Gathering<S>>>);

impl<S> Clone for Socket<S> {
    fn clone(&self) -> Self {
        Socket(self.0.clone())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// To a server.
    pub fn new(socket: S) -> Self {
        Socket::over(socket, None)
    }

    /// From a client.
    pub fn accepted(socket: S) -> Self {
        Socket::over(socket, Some(Late::new()))
    }

    fn over(socket: S, late: Option<Late>) -> Self {
        Socket(Rc::new(RefCell::new(Gathering {
            socket,
            late,
            bytes: Vec::new(),
            sent: 0,
            failed: None,
        })))
    }

    /// The connection takes no more streams from its client, once that has heard of it.
    pub fn drain(&self) {
        if let Some(late) = &mut self.0.borrow_mut().late {
            late.drain();
        }
    }

    /// Run what reads and writes here. Whenever it waits, what it has written leaves.
    pub async fn drive<F: Future>(&self, work: F) -> F::Output {
        let mut work = pin!(work);
        poll_fn(|context| {
            let polled = work.as_mut().poll(context);
            if polled.is_pending() {
                self.0.borrow_mut().send(context);
            }
            polled
        })
        .await
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    /// Hand over what the socket takes now; a failure is told to who writes or flushes next.
    fn send(&mut self, context: &mut Context<'_>) {
        if let Poll::Ready(Err(error)) = self.poll_send(context) {
            self.failed = Some(error.kind());
            context.waker().wake_by_ref();
        }
    }

    /// Hand over everything; Pending, with the task to be woken, when the socket does not take it all now.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        while self.sent < self.bytes.len() {
            match ready!(Pin::new(&mut self.socket).poll_write(context, &self.bytes[self.sent..]))? {
                0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        self.sent = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEPT {
            self.bytes = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    fn check(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |kind| Err(kind.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Gathering { socket, late, .. } = &mut *self.0.borrow_mut();
        match late {
            Some(late) => late.poll_read(socket, context, into),
            None => Pin::new(socket).poll_read(context, into),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut gathering = self.0.borrow_mut();
        gathering.check()?;
        let size = parts.iter().map(|part| part.len()).sum::<usize>();
        if size >= LARGE || gathering.bytes.len() + size > MOST_GATHERED {
            ready!(gathering.poll_send(context))?;
        }
        if size >= LARGE {
            return Pin::new(&mut gathering.socket).poll_write_vectored(context, parts);
        }
        for part in parts {
            gathering.bytes.extend_from_slice(part);
        }
        Poll::Ready(Ok(size))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing yet: `drive` sends it all once nothing more is written for now.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.borrow().check())
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        ready!(gathering.poll_send(context))?;
        Pin::new(&mut gathering.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{duplex, AsyncReadExt, AsyncWriteExt, DuplexStream};

    fn run<F: Future>(test: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime starts").block_on(test)
    }

    /// Write each, flushing every time as HTTP/2 does, then wait for the answer's first byte.
    async fn speak(mut socket: Socket<DuplexStream>, writes: &[&[u8]]) {
        for bytes in writes {
            socket.write_all(bytes).await.expect("the socket is open");
            socket.flush().await.expect("the socket is open");
        }
        socket.read_u8().await.expect("the peer answers");
    }

    #[test]
    fn small_writes_leave_together_and_in_order() {
        run(async {
            let (near, mut far) = duplex(1 << 20);
            let socket = Socket::new(near);
            let mut speaking = Box::pin(socket.drive(speak(socket.clone(), &[b"one ", b"two ", b"three"])));
            poll_fn(|context| {
                assert!(speaking.as_mut().poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
            let mut read = [0; 64];
            let count = far.read(&mut read).await.expect("the peer reads");
            assert_eq!(&read[..count], b"one two three");
            far.write_u8(0).await.expect("the peer answers");
            speaking.await;
        });
    }

    #[test]
    fn whatever_the_sizes_and_however_slow_the_peer_every_byte_arrives_in_order() {
        run(async {
            let sizes = [
                1,
                70_000,
                9,
                LARGE,
                100,
                3,
                MOST_GATHERED - 50,
                300,
                LARGE - 1,
                2 * MOST_GATHERED,
                5,
            ];
            let parts: Vec<Vec<u8>> = sizes.iter().zip(1u8..).map(|(size, byte)| vec![byte; *size]).collect();
            let writes: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let (near, mut far) = duplex(1000);
            let socket = Socket::new(near);
            let speaking = socket.drive(speak(socket.clone(), &writes));
            let reading = async {
                let mut read = vec![0; sizes.iter().sum()];
                far.read_exact(&mut read).await.expect("everything arrives");
                far.write_u8(0).await.expect("the peer answers");
                assert!(read == parts.concat());
            };
            tokio::join!(speaking, reading);
        });
    }

    #[test]
    fn what_is_gathered_leaves_before_the_end() {
        run(async {
            let (near, mut far) = duplex(1000);
            let mut socket = Socket::new(near);
            socket.write_all(b"bye").await.expect("the socket is open");
            socket.shutdown().await.expect("the socket is open");
            let mut read = Vec::new();
            far.read_to_end(&mut read).await.expect("the peer reads");
            assert_eq!(read, b"bye");
        });
    }

    #[test]
    fn a_failure_is_told_to_who_flushes_next() {
        run(async {
            let (near, far) = duplex(1000);
            drop(far);
            let socket = Socket::new(near);
            let mut writer = socket.clone();
            let mut polls = 0;
            let told = socket.drive(poll_fn(|context| {
                polls += 1;
                if polls == 1 {
                    assert!(Pin::new(&mut writer).poll_write(context, b"lost").is_ready());
                    return Poll::Pending;
                }
                Pin::new(&mut writer).poll_flush(context)
            }));
            assert_eq!(told.await.expect_err("nobody reads").kind(), ErrorKind::BrokenPipe);
        });
    }
}
