//! From what somebody names to the volumes that it has.

use std::io;
use std::path::{Path, PathBuf};

use super::directory;
use super::error::ArchiveError;
use super::index::Index;
use super::plcbundle;
use super::replica;
use super::volume::{Archive, Place, Volume};
use super::web::{Site, Web};
use crate::blocking;
use crate::snapshot::INDEX_NAME;
use crate::upstream::{Dump, DumpError};

impl Archive {
    /// Finds what a name stands for: standard input for `-`; an `http://` or `https://` URL of a file, of a plcbundle
    /// repository or of a replica; a file; a directory; a pattern of names. There is one for each thing that
    /// it stands for, and at least one.
    ///
    /// # Errors
    ///
    /// Where there is nothing of that name, or its index cannot be relied on.
    pub async fn find(name: &str, web: &Web) -> Result<Vec<Archive>, ArchiveError> {
        if name.starts_with("http://") || name.starts_with("https://") {
            return Ok(vec![on_the_web(web.site(name)?).await?]);
        }
        let name = name.to_owned();
        blocking::run("looking for an archive", move || here(&name)).await
    }
}

fn here(name: &str) -> Result<Vec<Archive>, ArchiveError> {
    let path = PathBuf::from(name);
    // A name with such characters may be a file's own.
    if directory::is_pattern(name) && !path.exists() {
        return directory::matching(name)?.iter().map(|path| of_path(path)).collect();
    }
    Ok(vec![of_path(&path)?])
}

fn of_path(path: &Path) -> Result<Archive, ArchiveError> {
    if !path.is_dir() {
        if path != Path::new("-") && !path.exists() || path.is_file() {
            // What is wrong with it is said before anything is begun. A pipe can be read once only.
            Dump::open(path)?;
        }
        return Ok(Archive::of_one(Volume::of_file(path.to_owned())));
    }
    let name = path.display().to_string();
    for index_name in [INDEX_NAME, plcbundle::INDEX] {
        let index = path.join(index_name);
        let index_name = index.display().to_string();
        let json = match std::fs::read(&index) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(DumpError::Open { name: index_name, source }.into()),
        };
        if let Some(index) = Index::parse(&index_name, &json)? {
            return Ok(index.archive(name, |file| {
                let file = path.join(&file.name);
                (file.display().to_string(), Place::File(file))
            }));
        }
    }
    let volumes = directory::files(path)?;
    Ok(Archive { name, volumes, origin: None, is_mixed: true })
}

async fn on_the_web(site: Site) -> Result<Archive, ArchiveError> {
    let name = site.url().to_owned();
    if site.is_file() {
        return Ok(Archive::of_one(Volume::of_stream(site)));
    }
    for index_name in [INDEX_NAME, plcbundle::INDEX] {
        let path = format!("/{index_name}");
        let Some(json) = site.look(&path).await? else { continue };
        let Some(index) = Index::parse(&format!("{name}{path}"), &json)? else { continue };
        index.check_sizes(&format!("{name}{path}"))?;
        // The format's own server (`plcbundle server`) has other paths than a directory of files.
        let is_served = index_name == INDEX_NAME;
        return Ok(index.archive(name, |file| {
            let path = match file.number {
                Some(number) if is_served => format!("/data/{number}"),
                _ => format!("/{}", file.name),
            };
            (format!("{}{path}", site.url()), Place::Whole { site: site.clone(), path })
        }));
    }
    if let Some(health) = site.look("/_health").await?
        && let Some(volumes) = replica::volumes(&site, &health)
    {
        return Ok(Archive { name, volumes, origin: None, is_mixed: false });
    }
    Ok(Archive::of_one(Volume::of_stream(site)))
}
