"""The publication log in a DynamoDB table."""
