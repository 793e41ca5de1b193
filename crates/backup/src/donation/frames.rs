//! Frames to bytes and back, with no connection in sight.

use super::{DONATION_FORMAT, Ending};

const HEADER_BYTES: usize = 5;

/// The longest payload that is read. Donors send a quarter of it at once.
const LONGEST_PAYLOAD_BYTES: usize = 1 << 20;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The next bytes of the xbstream.
    Data(Vec<u8>),
    /// How many bytes per second it bears; `None`: as many as there are. It comes every second, so that both sides
    /// notice when the other is gone.
    Limit(Option<u64>),
    /// It has sent everything.
    Ending(Box<Ending>),
}

/// Why bytes are not frames.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A kind that nobody sends, or a length that no frame has.
    #[error("the donor sent something that is no frame ({0})")]
    Strange(String),
    /// The last frame is not what it should be.
    #[error("the donor's last word is not understood")]
    Ending(#[from] serde_json::Error),
    /// A newer donor.
    #[error(
        "the donor speaks the format {0}, this version understands up to {max}: use a newer one here",
        max = DONATION_FORMAT
    )]
    Newer(u32),
    /// There is more behind the last frame.
    #[error("the donor sent more behind its last word")]
    More,
}

impl Frame {
    /// As it is sent.
    ///
    /// # Panics
    /// For a piece of 4 GiB, which nobody sends.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Data(data) => frame(b'D', data),
            Self::Limit(limit) => frame(b'L', &limit.unwrap_or(0).to_le_bytes()),
            Self::Ending(ending) => frame(
                b'E',
                &serde_json::to_vec(ending).expect("a document of strings and numbers is JSON"),
            ),
        }
    }
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("payloads are far below 4 GiB");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.push(kind);
    bytes.extend(length.to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// Takes frames out of whatever pieces the connection gives.
#[derive(Debug, Default)]
pub struct FrameParser {
    waiting: Vec<u8>,
    ended: bool,
}

impl FrameParser {
    /// The frames that `bytes` complete.
    ///
    /// # Errors
    /// When they are none; nothing more can be told of the stream then.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        self.waiting.extend(bytes);
        let mut frames = Vec::new();
        let mut taken = 0;
        while let Some((frame, length)) = next(&self.waiting[taken..])? {
            if self.ended {
                return Err(FrameError::More);
            }
            self.ended = matches!(frame, Frame::Ending(_));
            frames.push(frame);
            taken += length;
        }
        self.waiting.drain(..taken);
        if self.ended && !self.waiting.is_empty() {
            return Err(FrameError::More);
        }
        Ok(frames)
    }
}

/// The first frame of `bytes`, if they hold all of it, and its length.
fn next(bytes: &[u8]) -> Result<Option<(Frame, usize)>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let [kind, length @ ..] = *header;
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST_PAYLOAD_BYTES {
        return Err(FrameError::Strange(format!("a payload of {length} bytes")));
    }
    let Some(payload) = rest.get(..length) else {
        return Ok(None);
    };
    let frame = match (kind, <[u8; 8]>::try_from(payload)) {
        (b'D', _) => Frame::Data(payload.to_vec()),
        (b'L', Ok(limit)) => Frame::Limit(Some(u64::from_le_bytes(limit)).filter(|limit| *limit > 0)),
        (b'E', _) => {
            let ending: Ending = serde_json::from_slice(payload)?;
            if ending.format > DONATION_FORMAT {
                return Err(FrameError::Newer(ending.format));
            }
            Frame::Ending(Box::new(ending))
        }
        _ => return Err(FrameError::Strange(format!("kind {kind}, {length} bytes"))),
    };
    Ok(Some((frame, HEADER_BYTES + length)))
}

#[cfg(test)]
mod tests {
    use topology::gtid::Transactions;

    use super::*;

    fn all() -> Vec<Frame> {
        let has = Transactions::parse_mysql("").unwrap();
        vec![
            Frame::Data(b"XBSTCK01 and more".to_vec()),
            Frame::Limit(Some(4 << 20)),
            Frame::Data(vec![0; 300]),
            Frame::Limit(None),
            Frame::Ending(Box::new(Ending {
                format: DONATION_FORMAT,
                length: 317,
                sha256: "ab".repeat(32),
                before: has.clone(),
                after: has,
            })),
        ]
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let bytes: Vec<u8> = all().iter().flat_map(Frame::bytes).collect();
        for size in [1, 2, 5, 7, 64, bytes.len()] {
            let mut parser = FrameParser::default();
            let frames: Vec<Frame> = bytes
                .chunks(size)
                .flat_map(|piece| parser.feed(piece).unwrap())
                .collect();
            assert_eq!(frames, all(), "in pieces of {size}");
        }
    }

    #[test]
    fn a_stream_that_was_cut_anywhere_has_no_ending() {
        let bytes: Vec<u8> = all().iter().flat_map(Frame::bytes).collect();
        for length in 0..bytes.len() {
            let frames = FrameParser::default().feed(&bytes[..length]).unwrap();
            assert!(
                !frames.iter().any(|frame| matches!(frame, Frame::Ending(_))),
                "cut at {length}"
            );
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let last = all().pop().unwrap().bytes();
        let twice = [last.clone(), last.clone()].concat();
        let mut newer = last.clone();
        let format = newer
            .windows(10)
            .position(|bytes| bytes == b"\"format\":1")
            .unwrap();
        newer[format + 9] = b'9';
        for (bytes, word) in [
            (b"X\0\0\0\0".to_vec(), "no frame"),
            (b"D\xff\xff\xff\xff".to_vec(), "no frame"),
            (b"L\x01\0\0\0a".to_vec(), "no frame"),
            (b"E\x02\0\0\0{}".to_vec(), "not understood"),
            (twice, "behind its last word"),
            ([last, b"D".to_vec()].concat(), "behind its last word"),
            (newer, "format 9"),
        ] {
            let error = FrameParser::default().feed(&bytes).unwrap_err();
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }
}
