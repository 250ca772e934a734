//! nginx with a configuration of `ops/`, in a folder of its own, so that it needs nobody's rights.

use std::path::Path;

/// Writes what nginx needs into a folder: `site` is what belongs into `conf.d/`. The arguments with which nginx runs it
/// in the foreground, as one process, with its errors on the standard error.
pub fn arguments(site: &str, folder: &Path) -> std::io::Result<Vec<String>> {
    let at = |name: &str| folder.join(name).display().to_string();
    std::fs::write(at("site.conf"), site)?;
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|of| format!("{of}_temp_path {};\n", at(of)))
        .concat();
    let main = format!(
        "daemon off; master_process off; pid {};\nevents {{ worker_connections 4096; }}\n\
         http {{ access_log off;\n{paths}include {}; }}",
        at("pid"),
        at("site.conf")
    );
    std::fs::write(at("nginx.conf"), main)?;
    Ok(["-e", "stderr", "-p", &at(""), "-c", &at("nginx.conf")].map(str::to_owned).to_vec())
}
