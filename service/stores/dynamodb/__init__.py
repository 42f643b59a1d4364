"""Where publications live when several machines share them: one DynamoDB table."""
