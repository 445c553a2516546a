#!/bin/bash
# The identity of cluster/azure and where it may do what. Once, by an owner of the subscription:
# ACCOUNT=stepwiserruns LOCATION=southcentralus cluster/iam/azure.sh
#
# Ray's provider gives one identity to all nodes, head and workers, and makes it Contributor of the
# cluster's resource group at every `ray up`: that cannot be less, so the group holds the cluster and
# nothing else, and the identity lives in another. Beyond that group it has a container of blobs.
# Whoever runs `ray up` needs Contributor and "Role Based Access Control Administrator" on the first
# group, and "Managed Identity Operator" on the identity.
set -euo pipefail
: "${ACCOUNT:?the storage account of runs and models}" "${LOCATION:?a region with ND A100 v4}"

az group create --name stepwiser --location "$LOCATION"
az group create --name stepwiser-identity --location "$LOCATION"
az identity create --name stepwiser --resource-group stepwiser-identity --location "$LOCATION"
principal=$(az identity show --name stepwiser --resource-group stepwiser-identity \
    --query principalId --output tsv)
account=$(az storage account show --name "$ACCOUNT" --query id --output tsv)
az role assignment create --assignee-object-id "$principal" \
    --assignee-principal-type ServicePrincipal --role "Storage Blob Data Contributor" \
    --scope "$account/blobServices/default/containers/stepwiser-runs"
