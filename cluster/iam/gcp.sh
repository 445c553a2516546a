#!/bin/bash
# The two service accounts of cluster/gcp, with the least that they need. Once, by a person who may
# change the project's policy: PROJECT=my-project BUCKET=stepwiser-runs cluster/iam/gcp.sh
#
# The head makes, lists, labels and deletes instances, and hands the workers' account to them; it can
# hand out no other. Workers have a bucket, and nothing of the project. Ray makes an account of its own
# at every `ray up`, ray-autoscaler-sa-v1 with compute.admin and storage.objectAdmin: no node has it.
# Whoever runs `ray up` therefore needs roles/resourcemanager.projectIamAdmin and
# roles/iam.serviceAccountAdmin besides roles/compute.instanceAdmin.v1 and the right to use the head's
# account, or a project of the cluster's own.
set -euo pipefail
: "${PROJECT:?the id of the project}" "${BUCKET:?the bucket of runs and models}"

account() { echo "stepwiser-$1@$PROJECT.iam.gserviceaccount.com"; }

for name in head worker; do
    gcloud iam service-accounts create "stepwiser-$name" --project "$PROJECT" \
        --display-name "StepWiser $name nodes"
    gcloud storage buckets add-iam-policy-binding "gs://$BUCKET" \
        --member "serviceAccount:$(account "$name")" --role roles/storage.objectUser
done

gcloud iam roles create stepwiserHead --project "$PROJECT" \
    --file "$(dirname "$0")/gcp-head-role.yaml"
gcloud projects add-iam-policy-binding "$PROJECT" \
    --member "serviceAccount:$(account head)" \
    --role "projects/$PROJECT/roles/stepwiserHead" --condition None
gcloud iam service-accounts add-iam-policy-binding "$(account worker)" --project "$PROJECT" \
    --member "serviceAccount:$(account head)" --role roles/iam.serviceAccountUser
