//! Where this process runs, as its environment tells, and how long that leaves a worker to finish what it runs.

use std::fmt;
use std::time::Duration;

use super::Environment;

/// What supervises this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// A pod.
    Kubernetes,
    /// A task of ECS, on Fargate or not.
    Ecs,
    /// A service, job or worker pool of Cloud Run.
    CloudRun,
    /// Azure Container Apps.
    ContainerApps,
    /// A unit of systemd that notifies it.
    Systemd,
    /// Anything else.
    Elsewhere,
}

impl Platform {
    /// By which variables are set, and which of them told. Platforms that stand on Kubernetes are asked before it.
    pub fn of(environment: &Environment) -> (Self, &'static str) {
        const TOLD: [(&str, Platform); 8] = [
            ("CONTAINER_APP_NAME", Platform::ContainerApps),
            ("ECS_AGENT_URI", Platform::Ecs),
            ("ECS_CONTAINER_METADATA_URI_V4", Platform::Ecs),
            ("KUBERNETES_SERVICE_HOST", Platform::Kubernetes),
            ("CLOUD_RUN_JOB", Platform::CloudRun),
            ("CLOUD_RUN_WORKER_POOL", Platform::CloudRun),
            ("K_SERVICE", Platform::CloudRun),
            ("NOTIFY_SOCKET", Platform::Systemd),
        ];
        let is_set = |name: &str| environment.get(name).is_some_and(|value| !value.is_empty());
        let found = TOLD.into_iter().find(|(name, _)| is_set(name));
        found.map_or((Self::Elsewhere, ""), |(name, platform)| (platform, name))
    }

    /// How long running jobs may go on there after SIGTERM, unless somebody says: what the platform waits by itself, less
    /// what handing the rest back takes.
    pub const fn drain(self) -> Duration {
        Duration::from_secs(match self {
            // Of 30 s.
            Self::Kubernetes => 15,
            // Of 120 s, which Fargate grants at most.
            Self::Ecs => 105,
            // Of 10 s, which nobody can change.
            Self::CloudRun => 8,
            // Of 30 s, as commonly granted elsewhere.
            Self::ContainerApps | Self::Elsewhere => 25,
            // It is asked for more time as it goes.
            Self::Systemd => 300,
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kubernetes => "Kubernetes",
            Self::Ecs => "ECS",
            Self::CloudRun => "Cloud Run",
            Self::ContainerApps => "Azure Container Apps",
            Self::Systemd => "systemd",
            Self::Elsewhere => "no platform that is known",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_tells_the_platform() {
        let of = |names: &[&str]| {
            let environment = names.iter().map(|name| ((*name).to_owned(), "x".to_owned())).collect();
            let (platform, told) = Platform::of(&environment);
            (platform, told, platform.drain().as_secs())
        };
        assert_eq!(of(&[]), (Platform::Elsewhere, "", 25));
        assert_eq!(of(&["KUBERNETES_SERVICE_HOST"]), (Platform::Kubernetes, "KUBERNETES_SERVICE_HOST", 15));
        assert_eq!(of(&["ECS_AGENT_URI"]), (Platform::Ecs, "ECS_AGENT_URI", 105));
        assert_eq!(of(&["K_SERVICE", "K_REVISION"]).0, Platform::CloudRun);
        assert_eq!(of(&["CLOUD_RUN_WORKER_POOL"]).2, 8);
        assert_eq!(of(&["K_SERVICE", "KUBERNETES_SERVICE_HOST"]).0, Platform::Kubernetes, "Knative's, on Kubernetes");
        assert_eq!(of(&["CONTAINER_APP_NAME", "KUBERNETES_SERVICE_HOST"]).0, Platform::ContainerApps);
        assert_eq!(of(&["NOTIFY_SOCKET"]), (Platform::Systemd, "NOTIFY_SOCKET", 300));
        assert_eq!(of(&["NOTIFY_SOCKET", "KUBERNETES_SERVICE_HOST"]).0, Platform::Kubernetes);
        let empty = [("K_SERVICE".to_owned(), String::new())].into();
        assert_eq!(Platform::of(&empty).0, Platform::Elsewhere);
    }
}
