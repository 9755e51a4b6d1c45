//! Hidden states in a file of the work folder, where there is no room for them in memory.

use octet_quant::{HiddenStates, SinkError};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Hidden states on disk, as little-endian f32. The file is scratch: a resumed run computes its contents again.
pub(crate) struct OnDisk {
    path: PathBuf,
    file: File,
    /// Where the file stands.
    at: u64,
    bytes: Vec<u8>,
}

impl OnDisk {
    /// An empty file at `path`, in place of any there was.
    pub(crate) fn create(path: &Path) -> std::io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Self { path: path.to_path_buf(), file, at: 0, bytes: vec![] })
    }

    fn go_to(&mut self, offset: usize) -> std::io::Result<()> {
        let at = (offset * size_of::<f32>()) as u64;
        if at != self.at {
            self.at = self.file.seek(SeekFrom::Start(at))?;
        }
        Ok(())
    }

    fn failed(&self, error: std::io::Error) -> SinkError {
        format!("{}: {error}; free some space and run the same command again to go on", self.path.display()).into()
    }
}

impl HiddenStates for OnDisk {
    fn read(&mut self, offset: usize, out: &mut [f32]) -> Result<(), SinkError> {
        self.bytes.resize(size_of_val(out), 0);
        self.go_to(offset).map_err(|e| self.failed(e))?;
        self.file.read_exact(&mut self.bytes).map_err(|e| self.failed(e))?;
        self.at += self.bytes.len() as u64;
        out.iter_mut().zip(self.bytes.as_chunks::<4>().0).for_each(|(value, bytes)| *value = f32::from_le_bytes(*bytes));
        Ok(())
    }

    fn write(&mut self, offset: usize, values: &[f32]) -> Result<(), SinkError> {
        self.bytes.clear();
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.go_to(offset).map_err(|e| self.failed(e))?;
        let (first, rest) = self.bytes.split_at(self.bytes.len() / 2);
        self.file.write_all(first).map_err(|e| self.failed(e))?;
        octet_formats::kill_point("spill");
        self.file.write_all(rest).map_err(|e| self.failed(e))?;
        self.at += self.bytes.len() as u64;
        Ok(())
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        // A file that stays behind is overwritten by the next run.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_quant::InMemory;

    #[test]
    fn the_disk_gives_back_what_memory_does() {
        let path = std::env::temp_dir().join(format!("octet-spill-{}", std::process::id()));
        let (mut disk, mut memory) = (OnDisk::create(&path).unwrap(), InMemory::new(1000));
        let stores: [&mut dyn HiddenStates; 2] = [&mut disk, &mut memory];
        let mut found = vec![];
        for store in stores {
            for (i, offset) in (0..1000).step_by(100).enumerate() {
                store.write(offset, &vec![i as f32 + 0.1; 100]).unwrap();
            }
            store.write(300, &[-7.5; 100]).unwrap();
            let mut out = vec![0.0; 250];
            store.read(250, &mut out).unwrap();
            store.read(0, &mut out[..10]).unwrap();
            found.push(out);
        }
        assert_eq!(found[0], found[1]);
        assert!(disk.read(990, &mut [0.0; 20]).unwrap_err().to_string().contains("octet-spill"));
        drop(disk);
        assert!(!path.exists());
    }
}
