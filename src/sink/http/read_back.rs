//! What the receiver says that it has, at `http.verify_url`: each event as its plain record, a line each.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::header::HeaderValue;
use tokio::time::timeout;

use super::client::{self, pool};
use super::config::{HttpConfig, origin};
use crate::error::{Code, Error, Result};
use crate::event::encoding::Encoding;
use crate::event::encoding::json::Json;
use crate::lsn::Lsn;
use crate::sink::read_back::{Found, Part, PartitionOf, ReadEvents, Take};

/// Reads the receiver's events.
pub struct ReadReceiver(pub HttpConfig);

#[async_trait]
impl ReadEvents for ReadReceiver {
    async fn read(self: Box<Self>, _end: Lsn, _: &Part, mut take: Take) -> Result<()> {
        let ReadReceiver(config) = &*self;
        let Some(url) = config.verify_target()? else { return Ok(()) };
        let address = format!("http {}", origin(&url));
        let mut asked = hyper::Request::new(Empty::<Bytes>::new());
        *asked.uri_mut() = url;
        for (name, value) in &config.headers {
            // a template has no event to be filled in with here
            let plain = !["{{", "{%"].iter().any(|opens| value.expose().contains(opens));
            let value = HeaderValue::from_str(value.expose()).ok().filter(|_| plain);
            let name = hyper::header::HeaderName::try_from(name).ok();
            asked.headers_mut().extend(name.zip(value).map(|(name, value)| (Some(name), value)));
        }
        let silent = || Error::new(Code::HttpUnreachable, format!("{address} does not answer"));
        let answered =
            timeout(config.answer_within(), pool(config)?.request(asked)).await.map_err(|_| silent())?;
        let response = answered.map_err(|error| client::unreachable(&address, error))?;
        if !response.status().is_success() {
            let message =
                format!("{address} answers {} when it is asked for its events", response.status().as_u16());
            return Err(Error::new(Code::HttpRefused, message).hint("correct http.verify_url, or unset it"));
        }
        let (mut body, mut left) = (response.into_body(), BytesMut::new());
        while let Some(frame) = timeout(config.answer_within(), body.frame()).await.map_err(|_| silent())? {
            let cut = |error: hyper::Error| {
                Error::new(Code::HttpUnreachable, format!("{address} broke off")).because(error)
            };
            if let Some(bytes) = frame.map_err(cut)?.data_ref() {
                left.extend_from_slice(bytes);
            }
            while let Some(end) = left.iter().position(|byte| *byte == b'\n') {
                tell(&left.split_to(end + 1), &mut take)?;
            }
        }
        tell(&left, &mut take)
    }

    fn tells_letters(&self) -> bool {
        false
    }

    fn partition_of(&self) -> Option<Box<PartitionOf>> {
        None
    }
}

fn tell(line: &[u8], take: &mut Take) -> Result<()> {
    match line.trim_ascii() {
        b"" => Ok(()),
        line => {
            take(Json.read_event(line).as_ref().map_or(Found::Unreadable, |event| Found::Event(event, None)))
        }
    }
}
