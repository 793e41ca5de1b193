//! Bytes of a server's file, held against what the index says of the archive's blocks.

use sha2::{Digest as _, Sha256};

use super::Segment;
use super::compose::hexadecimal;

/// Compares one piece after the other.
#[derive(Debug)]
pub(super) struct Comparison {
    /// Blocks that were not reached, the next one last.
    left: Vec<Expected>,
    /// Blocks that the bytes are in; several where segments overlap.
    open: Vec<(Expected, Sha256)>,
    at: u64,
}

#[derive(Debug)]
struct Expected {
    first: u64,
    end: u64,
    sha256: String,
}

impl Comparison {
    /// Of the bytes from `from` on with the blocks of these segments. Blocks that begin before that are passed over.
    pub(super) fn new<'a>(segments: impl IntoIterator<Item = &'a Segment>, from: u64) -> Self {
        let blocks = segments.into_iter().flat_map(expected);
        let mut left: Vec<Expected> = blocks.filter(|block| block.first >= from).collect();
        left.sort_by_key(|block| std::cmp::Reverse(block.first));
        Self {
            left,
            open: Vec::new(),
            at: from,
        }
    }

    /// Takes the bytes that follow. Whether every block that ends in them is right.
    pub(super) fn take(&mut self, bytes: &[u8]) -> bool {
        let (from, to) = (self.at, self.at + bytes.len() as u64);
        while self.left.last().is_some_and(|block| block.first < to) {
            self.open
                .extend(self.left.pop().map(|block| (block, Sha256::new())));
        }
        for (block, hash) in &mut self.open {
            let place = |at: u64| usize::try_from(at.clamp(from, to) - from).unwrap_or(bytes.len());
            hash.update(&bytes[place(block.first)..place(block.end)]);
        }
        let (done, open): (Vec<_>, Vec<_>) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|(block, _)| block.end <= to);
        self.open = open;
        self.at = to;
        done.into_iter()
            .all(|(block, hash)| hexadecimal(&hash.finalize()) == block.sha256)
    }

    /// Whether every block has ended.
    pub(super) fn is_over(&self) -> bool {
        self.left.is_empty() && self.open.is_empty()
    }
}

fn expected(segment: &Segment) -> Vec<Expected> {
    let mut first = segment.first;
    let blocks = segment.blocks.iter().map(|block| {
        let begin = first;
        first += block.length;
        Expected {
            first: begin,
            end: first,
            sha256: block.sha256.clone(),
        }
    });
    blocks.collect()
}
