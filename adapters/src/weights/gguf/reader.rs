//! A bounds-checked cursor over a GGUF file's head.

use std::path::Path;

use crate::weights::WeightsError;

/// Reads little-endian values and never past the end.
pub(super) struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8], position: usize) -> Self {
        Self { path, bytes, position }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.position)
    }

    pub(super) fn damaged(&self, what: &str, problem: impl Into<String>) -> WeightsError {
        WeightsError::damaged(self.path, format!("byte {}, {what}", self.position), problem)
    }

    pub(super) fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8], WeightsError> {
        let end = self.position.checked_add(length).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            let left = self.remaining();
            return Err(
                self.damaged(what, format!("needs {length} bytes, the file has {left} more"))
            );
        };
        let taken = &self.bytes[self.position..end];
        self.position = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], WeightsError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, WeightsError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, WeightsError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things of at least `least_bytes` each; more than fit into the rest is a lie.
    pub(super) fn count(&mut self, what: &str, least_bytes: usize) -> Result<usize, WeightsError> {
        let claimed = self.u64(what)?;
        let most = (self.remaining() / least_bytes) as u64;
        if claimed > most {
            let problem = format!("claims {claimed}, the rest of the file holds at most {most}");
            return Err(self.damaged(what, problem));
        }
        usize::try_from(claimed).map_err(|_| self.damaged(what, "too large for this machine"))
    }

    pub(super) fn string(&mut self, what: &str) -> Result<&'a str, WeightsError> {
        let length = self.count(what, 1)?;
        let start = self.position;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|error| {
            WeightsError::damaged(
                self.path,
                format!("byte {}, {what}", start + error.valid_up_to()),
                "not valid UTF-8",
            )
        })
    }
}
