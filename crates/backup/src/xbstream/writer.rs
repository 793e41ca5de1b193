//! Writes chunks as `mbstream -x` reads them.

use std::io::{self, Write};

use super::{Chunk, Content, MAGIC};

/// A stream that is being written.
pub struct Writer<W> {
    output: W,
}

impl<W: Write> Writer<W> {
    /// A writer at the start of a stream.
    pub fn new(output: W) -> Self {
        Self { output }
    }

    /// Appends a chunk. Its path is written as it is: [`super::Reader`] and the caller keep it safe.
    ///
    /// # Errors
    /// When the output fails, or a path or map is too long for its field.
    pub fn write(&mut self, chunk: &Chunk) -> io::Result<()> {
        let kind = match chunk.content {
            Content::Payload { .. } => b'P',
            Content::Sparse { .. } => b'S',
            Content::End => b'E',
        };
        let mut header = Vec::with_capacity(64 + chunk.path.len());
        header.extend(MAGIC);
        header.extend([0, kind]);
        header.extend(length_u32(chunk.path.len())?);
        header.extend(chunk.path.as_bytes());
        match &chunk.content {
            Content::End => self.output.write_all(&header),
            Content::Payload { offset, data } => {
                header.extend((data.len() as u64).to_le_bytes());
                header.extend(offset.to_le_bytes());
                header.extend(crc32fast::hash(data).to_le_bytes());
                self.output.write_all(&header)?;
                self.output.write_all(data)
            }
            Content::Sparse { offset, map, data } => {
                let raw_map: Vec<u8> = map
                    .iter()
                    .flat_map(|entry| [entry.skip.to_le_bytes(), entry.length.to_le_bytes()])
                    .flatten()
                    .collect();
                let mut hasher = crc32fast::Hasher::new();
                hasher.update(&raw_map);
                hasher.update(data);
                header.extend(length_u32(map.len())?);
                header.extend((data.len() as u64).to_le_bytes());
                header.extend(offset.to_le_bytes());
                header.extend(hasher.finalize().to_le_bytes());
                header.extend(raw_map);
                self.output.write_all(&header)?;
                self.output.write_all(data)
            }
        }
    }

    /// The output, for closing it.
    pub fn into_inner(self) -> W {
        self.output
    }
}

fn length_u32(length: usize) -> io::Result<[u8; 4]> {
    u32::try_from(length)
        .map(u32::to_le_bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a field of over 4 GiB"))
}
