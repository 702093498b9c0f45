//! Which endpoint a request is for.
use crate::encoding::decode;
use crate::endpoint::{Endpoint, Method, TABLE};

/// What no endpoint answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// No endpoint has this path.
    Path,
    /// One has this path, with another method.
    Method,
}

/// The methods that a path takes, for `Allow:` (RFC 9110 §10.2.1).
pub fn allowed(path: &str) -> Vec<Method> {
    let found: Vec<&Endpoint> = TABLE.iter().filter(|line| matches(line.path, path).is_some()).collect();
    let variables = |line: &&Endpoint| line.path.matches('{').count();
    // A path that is written out goes before one with a variable in its place.
    let fewest = found.iter().map(variables).min();
    found.iter().filter(|line| Some(variables(line)) == fewest).map(|line| line.method).collect()
}

/// The endpoint for a request line, and the decoded segments in the places of `{…}`.
pub fn find(method: &str, path: &str) -> Result<(&'static Endpoint, Vec<String>), NoRoute> {
    let mut missed = NoRoute::Path;
    for endpoint in TABLE {
        if let Some(arguments) = matches(endpoint.path, path) {
            if endpoint.method.name() == method {
                return Ok((endpoint, arguments));
            }
            missed = NoRoute::Method;
        }
    }
    Err(missed)
}

fn matches(pattern: &str, path: &str) -> Option<Vec<String>> {
    let mut arguments = Vec::new();
    let mut segments = path.split('/');
    for expected in pattern.split('/') {
        let segment = segments.next()?;
        if expected.starts_with('{') {
            if segment.is_empty() {
                return None;
            }
            arguments.push(decode(segment)?);
        } else if expected != segment {
            return None;
        }
    }
    segments.next().is_none().then_some(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Route;

    #[test]
    fn every_endpoint_is_found_by_its_own_path() {
        for endpoint in TABLE {
            let path = endpoint.route.path(&["a b/ü"; 2]);
            let (found, arguments) = find(endpoint.method.name(), &path).unwrap();
            assert_eq!(found.route, endpoint.route, "{path}");
            assert_eq!(arguments.len(), endpoint.path.matches('{').count());
            assert!(arguments.iter().all(|argument| argument == "a b/ü"));
            assert!(endpoint.path.starts_with("/v1/") || endpoint.route == Route::Metrics);
        }
    }

    #[test]
    fn what_is_not_there_is_told_from_a_wrong_method() {
        assert_eq!(find("GET", "/v1/nothing").unwrap_err(), NoRoute::Path);
        assert_eq!(find("GET", "/v1/vms/").unwrap_err(), NoRoute::Path);
        assert_eq!(find("POST", "/v1/info").unwrap_err(), NoRoute::Method);
        assert_eq!(find("GET", "/v1/vms/%zz").unwrap_err(), NoRoute::Path);
    }
}
