#!/usr/bin/env bash
# What aws.yaml needs in an account, once: a role for the head, and a security group that admits only you.
#
#   clusters/aws-setup.sh                 again after your address has changed
#   down: aws ec2 delete-security-group --group-name raynn, then in IAM the role and the instance profile raynn-head
#
# Cost: nothing. It needs `aws` (https://aws.amazon.com/cli), your credentials in the environment or in ~/.aws, and
# rights for iam:*Role*, iam:*InstanceProfile*, ec2:*SecurityGroup*. The groups of the default VPC are used.
set -euo pipefail
cd "$(dirname "$0")"
export AWS_DEFAULT_REGION=us-west-2 AWS_PAGER=''

if ! aws iam get-role --role-name raynn-head >/dev/null 2>&1; then
    aws iam create-role --role-name raynn-head --assume-role-policy-document \
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"},
          "Action": "sts:AssumeRole"}]}' >/dev/null
    aws iam create-instance-profile --instance-profile-name raynn-head >/dev/null
    aws iam add-role-to-instance-profile --instance-profile-name raynn-head --role-name raynn-head
fi
aws iam put-role-policy --role-name raynn-head --policy-name raynn --policy-document file://aws-policy.json

group=$(aws ec2 describe-security-groups --filters Name=group-name,Values=raynn \
    --query 'SecurityGroups[0].GroupId' --output text)
if [ "$group" = None ]; then
    group=$(aws ec2 create-security-group --group-name raynn --description 'raynn: members, and ssh from one address' \
        --query GroupId --output text)
    aws ec2 authorize-security-group-ingress --group-id "$group" --protocol=-1 --source-group "$group" >/dev/null
fi
mine=$(curl -fsS https://checkip.amazonaws.com)
aws ec2 authorize-security-group-ingress --group-id "$group" --protocol tcp --port 22 --cidr "$mine/32" >/dev/null ||
    echo "$group admits $mine already, or says why not above" >&2
echo "security group $group admits ssh from $mine; role raynn-head is what aws-policy.json says"
