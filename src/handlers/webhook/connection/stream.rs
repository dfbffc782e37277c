//! A stream that tells how far the exchange over it has come, which the HTTP client does not tell.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How far the exchange has come that is under way.
#[derive(Debug, Default)]
pub(super) struct Extent {
    /// Something is written that may still be on this side.
    is_writing: AtomicBool,
    /// Something has come.
    is_answered: AtomicBool,
}

impl Extent {
    /// Another exchange begins.
    pub(super) fn reset(&self) {
        self.is_answered.store(false, Ordering::Relaxed);
    }

    /// Whether what was begun to be written has left to its end. The client flushes the stream when it has written all it has.
    pub(super) fn is_written(&self) -> bool {
        !self.is_writing.load(Ordering::Relaxed)
    }

    /// Whether a part of an answer has come, if only a byte.
    pub(super) fn is_answered(&self) -> bool {
        self.is_answered.load(Ordering::Relaxed)
    }
}

/// The stream. All that it does is to take notes.
pub(super) struct NotedStream<S> {
    stream: S,
    extent: Arc<Extent>,
}

impl<S> NotedStream<S> {
    pub(super) fn new(stream: S, extent: Arc<Extent>) -> Self {
        Self { stream, extent }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for NotedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.remaining();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.remaining() < room {
            self.extent.is_answered.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for NotedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.extent.is_writing.store(true, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.extent.is_writing.store(true, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.extent.is_writing.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
