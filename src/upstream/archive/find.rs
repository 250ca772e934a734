//! From what somebody names to the volumes that it has.

use std::path::{Path, PathBuf};

use super::directory;
use super::error::ArchiveError;
use super::plcbundle;
use super::replica;
use super::volume::{Begins, Place, Volume};
use super::web::{Site, Web};
use crate::blocking;
use crate::upstream::{Dump, DumpError};

/// Something that holds operations, in volumes.
#[derive(Debug)]
pub struct Archive {
    /// How it is called in messages.
    pub name: String,
    /// In the order in which they are read.
    pub volumes: Vec<Volume>,
    /// The directory that its index says the operations come from.
    pub origin: Option<String>,
    /// It was found in a directory without an index, where there may be other files as well.
    pub is_mixed: bool,
}

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

    fn of_one(volume: Volume) -> Archive {
        let name = volume.name.clone();
        Archive { name, volumes: vec![volume], origin: None, is_mixed: false }
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
    let index = path.join(plcbundle::INDEX);
    if index.is_file() {
        let index_name = index.display().to_string();
        let failed = |source| DumpError::Open { name: index_name.clone(), source };
        let json = std::fs::read(&index).map_err(failed)?;
        let index = plcbundle::Index::parse(&index_name, &json)?.ok_or_else(|| {
            let reason = "it is not the JSON of one".to_owned();
            ArchiveError::Index { name: index_name.clone(), reason }
        })?;
        return Ok(of_bundles(name, index, |bundle| {
            let file = path.join(bundle.file());
            (file.display().to_string(), Place::File(file))
        }));
    }
    let volumes = directory::files(path)?;
    Ok(Archive { name, volumes, origin: None, is_mixed: true })
}

async fn on_the_web(site: Site) -> Result<Archive, ArchiveError> {
    let name = site.url().to_owned();
    let stream = |site: Site| {
        let (name, place) = (site.url().to_owned(), Place::Stream(site));
        let begins = Begins::WithItsFirst;
        Archive::of_one(Volume { name, bytes: None, content: None, begins, stored: None, place })
    };
    if site.is_file() {
        return Ok(stream(site));
    }
    // A directory of files, or a server of the format's own program (`plcbundle server`).
    for (path, is_served) in
        [(format!("/{}", plcbundle::INDEX), false), ("/index.json".to_owned(), true)]
    {
        let Some(json) = site.look(&path).await? else { continue };
        let Some(index) = plcbundle::Index::parse(&format!("{name}{path}"), &json)? else {
            continue;
        };
        return Ok(of_bundles(name, index, |bundle| {
            let path = match is_served {
                true => format!("/data/{}", bundle.number),
                false => format!("/{}", bundle.file()),
            };
            (format!("{}{path}", site.url()), Place::Whole { site: site.clone(), path })
        }));
    }
    if let Some(health) = site.look("/_health").await?
        && let Some(volumes) = replica::volumes(&site, &health)
    {
        return Ok(Archive { name, volumes, origin: None, is_mixed: false });
    }
    Ok(stream(site))
}

/// The archive of a plcbundle repository, of which each bundle has a name and a place.
fn of_bundles(
    name: String,
    index: plcbundle::Index,
    place: impl Fn(&plcbundle::Bundle) -> (String, Place),
) -> Archive {
    let volume = |bundle: &plcbundle::Bundle| {
        let (name, place) = place(bundle);
        let (content, stored) = (Some(bundle.content), Some(bundle.stored));
        let begins = match bundle.number {
            1 => Begins::After(0),
            _ => Begins::WithoutGap,
        };
        Volume { name, bytes: Some(bundle.bytes), content, begins, stored, place }
    };
    let volumes = index.bundles.iter().map(volume).collect();
    Archive { name, volumes, origin: Some(index.origin), is_mixed: false }
}
