//! What is measured, on what, how often.

use std::path::PathBuf;
use std::str::FromStr;

/// What is measured, and of how much.
#[derive(Debug, clap::Args)]
pub struct Scope {
    /// Operations of the log.
    #[arg(long, default_value_t = 2_000_000)]
    pub operations: u64,
    /// Times that each row is measured; the median is reported.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=10))]
    pub runs: u64,
    /// Decides every byte of the log.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Rows to measure: stages, verify, follow, fsck, lookup, audit, export, stream,
    /// index; of one database only as `follow-sqlite` or `follow-postgres`.
    #[arg(long, value_delimiter = ',', value_name = "ROW,…")]
    pub only: Vec<Choice>,
    /// Directory for the log, which stays, and for the databases, which do not.
    #[arg(long, value_name = "DIRECTORY")]
    pub directory: Option<PathBuf>,
    /// A Postgres server in which databases may be created; by default one is started.
    #[arg(long, value_name = "URL")]
    pub postgres: Option<String>,
    /// A setting of the Postgres that is started, such as `shared_buffers=512MB`. Repeatable.
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "postgres")]
    pub postgres_setting: Vec<String>,
    /// Connections that ask for identities.
    #[arg(long, default_value_t = 32)]
    pub connections: u64,
    /// Seconds of each measurement under load.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Make the load for lookups with `wrk`, which has to be installed.
    #[arg(long)]
    pub wrk: bool,
    /// Hold the replica, and Postgres with it, to so much memory, page cache included.
    #[arg(long, value_name = "MEGABYTES")]
    pub memory_limit: Option<u64>,
    /// The replica that is measured; by default the one beside this program.
    #[arg(long, value_name = "FILE")]
    pub replica: Option<PathBuf>,
    /// A second replica to compare with: both are measured on the same log, by turns.
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub signatures: plc_replica::commands::Signatures,
}

/// A database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Backend {
    Sqlite,
    Postgres,
}

impl Backend {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Sqlite => "SQLite",
            Backend::Postgres => "Postgres",
        }
    }
}

/// A row of `--only`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    task: &'static str,
    backend: Option<Backend>,
}

/// Those that need no database, then the others in the order in which they are measured. The
/// stream is late, since it adds to the store; the index has stores of its own.
const TASKS: [&str; 9] =
    ["stages", "verify", "follow", "fsck", "lookup", "audit", "export", "stream", "index"];

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        let (task, backend) = match text.split_once('-') {
            None => (text, None),
            Some((task, "sqlite")) => (task, Some(Backend::Sqlite)),
            Some((task, "postgres")) => (task, Some(Backend::Postgres)),
            Some(_) => return Err("the databases are `sqlite` and `postgres`".to_owned()),
        };
        let task = TASKS.into_iter().find(|known| *known == task);
        let task = task.ok_or_else(|| format!("the rows are {}", TASKS.join(", ")))?;
        Ok(Choice { task, backend })
    }
}

impl Scope {
    /// Whether a row is to be measured, on this database if it needs one.
    pub fn wants(&self, task: &str, backend: Option<Backend>) -> bool {
        let matches = |choice: &Choice| {
            choice.task == task
                && (backend.is_none() || choice.backend.is_none() || choice.backend == backend)
        };
        self.only.is_empty() || self.only.iter().any(matches)
    }

    /// Whether any row is to be measured on this database.
    pub fn wants_any(&self, backend: Backend) -> bool {
        TASKS[2..].iter().any(|task| self.wants(task, Some(backend)))
    }

    /// What the reader of the figures has to know.
    pub fn settings(&self) -> Vec<String> {
        let mut settings = vec![format!(
            "{} operations followed, {} runs, {} connections for lookups.",
            self.operations, self.runs, self.connections
        )];
        if !self.postgres_setting.is_empty() {
            settings.push(format!("Postgres with {}.", self.postgres_setting.join(", ")));
        }
        if let Some(limit) = self.memory_limit {
            settings.push(format!("Memory, page cache included, held to {limit} MB."));
        }
        settings
    }
}
