//! One block into one frame.

use std::io::{self, Write as _};

use crate::manifest::Packing;

/// Compresses block after block, each by itself: the frames, one after the other, are what the tools unpack.
pub(super) enum Compressor {
    /// Frames of zstd.
    Zstd(zstd::bulk::Compressor<'static>),
    /// Members of gzip.
    Gzip(flate2::Compression),
}

impl Compressor {
    /// # Errors
    /// When the level is none.
    pub(super) fn new(packing: Packing) -> io::Result<Self> {
        Ok(match packing {
            Packing::Zstd { level } => {
                let mut compressor = zstd::bulk::Compressor::new(level)?;
                // Costs next to nothing and lets `zstd -t` find damage without our manifest.
                compressor.include_checksum(true)?;
                Self::Zstd(compressor)
            }
            Packing::Gzip { level } => Self::Gzip(flate2::Compression::new(level)),
        })
    }

    /// Puts the frame of `raw` in the place of what `packed` holds.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn compress(&mut self, raw: &[u8], packed: &mut Vec<u8>) -> io::Result<()> {
        packed.clear();
        match self {
            Self::Zstd(compressor) => {
                packed.reserve(zstd::zstd_safe::compress_bound(raw.len()));
                compressor.compress_to_buffer(raw, packed).map(|_| ())
            }
            Self::Gzip(level) => {
                let mut encoder = flate2::write::GzEncoder::new(packed, *level);
                encoder.write_all(raw)?;
                encoder.finish().map(|_| ())
            }
        }
    }
}
