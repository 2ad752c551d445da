"""Files that put a wheel on Kubernetes: the image's Containerfile, and manifests for a cluster or for KServe."""

from cpupack.deploy.options import DeployOptions
from cpupack.deploy.write import Deployment, deploy

__all__ = ["DeployOptions", "Deployment", "deploy"]
