//! Bytes that wait, in pieces: they grow without being moved, and go piece by piece.

use std::collections::VecDeque;

/// Of a piece. Less than what is gathered under load, so that little is taken in vain.
const PIECE_BYTES: usize = 256 * 1024;

/// A row of bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Pending {
    pieces: VecDeque<Vec<u8>>,
    length: usize,
}

impl Pending {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds bytes at the end.
    pub(super) fn extend(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len();
        while !bytes.is_empty() {
            let room = self
                .pieces
                .back()
                .map_or(0, |piece| PIECE_BYTES.saturating_sub(piece.len()));
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            if let Some(piece) = self.pieces.back_mut() {
                piece.extend_from_slice(now);
            }
            if !rest.is_empty() {
                self.pieces
                    .push_back(Vec::with_capacity(rest.len().min(PIECE_BYTES)));
            }
            bytes = rest;
        }
    }

    /// Takes so many bytes from the begin, or all that there are.
    pub(super) fn take(&mut self, length: usize) -> Self {
        let mut taken = Self::default();
        while let Some(mut piece) = self.pieces.pop_front() {
            let wanted = length - taken.length;
            if piece.len() > wanted {
                let rest = piece.split_off(wanted);
                self.pieces.push_front(rest);
            }
            taken.length += piece.len();
            if !piece.is_empty() {
                taken.pieces.push_back(piece);
            }
            if taken.length == length {
                break;
            }
        }
        self.length -= taken.length;
        taken
    }

    /// The next bytes in one piece, at most so many; `None` at the end.
    pub(super) fn next_block(&mut self, largest: usize) -> Option<Vec<u8>> {
        let block = self.take(largest);
        (!block.is_empty()).then(|| Vec::from(block.pieces).concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let bytes: Vec<u8> = (0..=250).cycle().take(3 * PIECE_BYTES + 17).collect();
        for (step, cut, block) in [
            (1 << 20, 100, 7000),
            (1000, PIECE_BYTES, PIECE_BYTES + 1),
            (PIECE_BYTES, 0, 1 << 20),
        ] {
            let mut pending = Pending::default();
            for part in bytes.chunks(step) {
                pending.extend(part);
            }
            assert_eq!(pending.len(), bytes.len());
            let mut taken = pending.take(cut);
            assert_eq!((taken.len(), pending.len()), (cut, bytes.len() - cut));
            pending.extend(b"more");
            let mut out = Vec::new();
            for part in [&mut taken, &mut pending] {
                while let Some(next) = part.next_block(block) {
                    assert!(next.len() == block || part.is_empty());
                    out.extend(next);
                }
            }
            assert_eq!(out, [&bytes[..], b"more"].concat());
            assert!(pending.is_empty() && pending.take(9).is_empty());
        }
    }
}
