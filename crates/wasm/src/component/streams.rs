//! The program's standard streams, as components know streams.
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, empty};
use tokio::sync::Notify;
use viv_process::{Channel, Streams};
use wasmtime::Error;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

/// Most bytes of one reading, and of one writing.
const PIECE_MAX: usize = 64 << 10;

/// Standard input. All that are made of it share its bytes.
#[derive(Clone)]
pub(crate) struct Input {
    pub(crate) streams: Arc<Streams>,
    /// When there may be more.
    pub(crate) news: Arc<Notify>,
    pub(crate) tty: bool,
}

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        self.tty
    }
}

impl StdinStream for Input {
    /// Of preview 3, which no component here gets.
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(empty())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {
        loop {
            let more = self.news.notified();
            if self.streams.available().is_some() {
                return;
            }
            more.await;
        }
    }
}

impl InputStream for Input {
    fn read(&mut self, size: usize) -> StreamResult<hyper::body::Bytes> {
        match self.streams.available() {
            None => Ok(hyper::body::Bytes::new()),
            Some(0) => Err(StreamError::Closed),
            Some(_) => {
                let read = self.streams.read(size.min(PIECE_MAX));
                read.map(Into::into).map_err(|stopped| StreamError::Trap(Error::new(stopped)))
            }
        }
    }
}

/// Standard output or error. Whoever reads it and is slow makes the program wait.
#[derive(Clone)]
pub(crate) struct Printed {
    pub(crate) streams: Arc<Streams>,
    pub(crate) channel: Channel,
    pub(crate) tty: bool,
}

impl IsTerminal for Printed {
    fn is_terminal(&self) -> bool {
        self.tty
    }
}

impl StdoutStream for Printed {
    /// Of preview 3, which no component here gets.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(empty())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Printed {
    async fn ready(&mut self) {}
}

impl OutputStream for Printed {
    fn write(&mut self, bytes: hyper::body::Bytes) -> StreamResult<()> {
        self.streams.write(self.channel, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PIECE_MAX)
    }
}
